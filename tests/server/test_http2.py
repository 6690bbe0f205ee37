"""HTTP/2 on a real socket: an error of one stream ends that stream only, and empty frames have a bound."""

import asyncio
import json
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace

import h2.errors
import h2.events
import h2.settings
import pytest
from h2.utilities import validate_headers
from uvicorn.server import ServerState

from bei.server import connections, request_heads
from bei.server.http2 import STREAMS, Http2
from benchmarks.attacks.attack import attacks
from tests.support.running import LIMIT, Running, answering, resident
from tests.support.sockets import Http2 as Client
from tests.support.sockets import connect, everything
from tests.support.waiting import until, wait_until

BODY = json.dumps({"inputs": "the cat sat on the mat"}).encode()
HEAD = [(":method", "POST"), (":path", "/embed"), (":scheme", "http"), (":authority", "localhost")]


@pytest.fixture(scope="module")
def slow(tiny_folder) -> Iterator[Running]:
    """A server that takes a third of a second per call."""
    with answering(tiny_folder, batch_seconds=0.3) as running:
        yield running


ENDS = (h2.events.ResponseReceived, h2.events.StreamReset, h2.events.ConnectionTerminated)


class Loose(Client):
    """A client that sends any request head."""

    def head(self, headers: list[tuple[str, str]], end: bool = True) -> int:
        self.machine.config.validate_outbound_headers = self.machine.config.normalize_outbound_headers = False
        stream = self.machine.get_next_available_stream_id()
        self.machine.send_headers(stream, headers, end_stream=end)
        self.send()
        return stream

    def ask(self) -> int:
        stream = self.begin("/embed")
        self.machine.send_data(stream, BODY, end_stream=True)
        self.send()
        return stream

    def until(self, *streams: int, seconds: float = LIMIT) -> dict[int, str]:
        """The ends of streams: the status, or the error of a reset."""
        ends: dict[int, str] = {}
        limit = time.monotonic() + seconds
        while not ends.keys() >= set(streams) and time.monotonic() < limit:
            for event in self.events(0.1, until=ENDS):
                match event:
                    case h2.events.ResponseReceived():
                        ends[event.stream_id] = dict(event.headers)[":status"]
                    case h2.events.StreamReset():
                        ends.setdefault(event.stream_id, h2.errors.ErrorCodes(event.error_code).name)
                    case h2.events.ConnectionTerminated(error_code=code) if code is not None:
                        return {**ends, 0: h2.errors.ErrorCodes(code).name}
        return ends


def without(name: str) -> list[tuple[str, str]]:
    return [(key, value) for key, value in HEAD if key != name]


MALFORMED = {
    "no method": without(":method"),
    "no path": without(":path"),
    "no scheme": without(":scheme"),
    "an empty path": [*without(":path"), (":path", "")],
    "two paths": [*HEAD, (":path", "/")],
    "an unknown one": [*HEAD, (":color", "blue")],
    "a status": [*HEAD, (":status", "200")],
    "one behind a field": [HEAD[0], ("accept", "a"), *HEAD[1:]],
    "capitals": [*HEAD, ("Accept", "a")],
    "a connection": [*HEAD, ("connection", "close")],
    "a coding": [*HEAD, ("transfer-encoding", "chunked")],
    "a line end": [*HEAD, ("accept", "a\r\nb: c")],
    "two hosts": [*HEAD, ("host", "b")],
    "no ASCII": [*without(":path"), (":path", "/é")],
    "CONNECT": [(":method", "CONNECT"), (":authority", "a:443")],
    "a length of letters": [*HEAD, ("content-length", "x")],
    "a length below nothing": [*HEAD, ("content-length", "-1")],
    "a length of 5,000 digits": [*HEAD, ("content-length", "9" * 5000)],
    "two lengths": [*HEAD, ("content-length", "0"), ("content-length", "1")],
    "a length without a body": [*HEAD, ("content-length", "5")],
    "a name of a zero": [*HEAD, ("\0", "0")],
    "websocket": [(":method", "CONNECT"), (":protocol", "websocket"), *HEAD[1:]],
}


@pytest.mark.parametrize("headers", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_head_ends_its_stream_and_no_other(slow, headers):
    client = Loose(slow)
    before, wrong, after = client.ask(), client.head(headers), client.ask()
    ends = client.until(before, wrong, after)
    assert ends == {before: "200", wrong: "PROTOCOL_ERROR", after: "200"}
    client.sock.close()


@pytest.mark.parametrize("more", [-1, 1])
def test_a_body_of_another_length_ends_its_stream_and_no_other(slow, more):
    client = Loose(slow)
    before, right, wrong = (
        client.ask(),
        *(client.head([*HEAD, ("content-length", str(len(BODY) + extra))], end=False) for extra in (0, more)),
    )
    for stream in (right, wrong):
        client.machine.send_data(stream, BODY, end_stream=True)
    client.send()
    after = client.ask()
    ends = client.until(before, right, wrong, after)
    assert ends == {before: "200", right: "200", wrong: "PROTOCOL_ERROR", after: "200"}
    client.sock.close()


def test_connect_is_not_advertised(slow):
    client = Loose(slow)
    client.events(until=h2.events.RemoteSettingsChanged)
    settings = client.machine.remote_settings
    assert not settings.enable_connect_protocol
    assert settings.max_concurrent_streams == 256
    client.sock.close()


def test_a_stream_too_many_is_refused_and_no_other(slow):
    client = Loose(slow)
    client.machine.remote_settings.max_concurrent_streams = 1 << 20  # as before the server has said how many
    client.machine.remote_settings.acknowledge()
    streams = [client.head(HEAD, end=False) for _ in range(1001)]
    for stream in streams[:256]:
        client.machine.send_data(stream, BODY, end_stream=True)
    client.send()
    ends = client.until(*streams)
    assert [ends.get(stream) for stream in streams] == ["200"] * 256 + ["REFUSED_STREAM"] * 745
    assert list(client.until(client.ask()).values()) == ["200"]
    client.sock.close()


@pytest.mark.parametrize(
    "name", ["SETTINGS", "PING", "empty DATA", "DATA of one byte", "WINDOW_UPDATE", "PRIORITY", "RST_STREAM"]
)
def test_frames_that_carry_nothing_have_a_bound(slow, name):
    opening, data = attacks("http")[name].frames
    client = Loose(slow)
    client.sock.sendall(opening)
    client.sock.setblocking(False)
    sent, received = 0, b""
    while sent < 8_000_000:
        try:
            sent += client.sock.send(data)
        except BlockingIOError:
            select.select([client.sock], [client.sock], [], LIMIT)
        except OSError:
            break
        try:
            if not (part := client.sock.recv(1 << 20)):
                break
            received += part
        except BlockingIOError:
            pass
        except OSError:
            break
    assert sent < 8_000_000
    client.sock.close()


def test_a_client_that_pings_now_and_then_stays(slow):
    client = Loose(slow)
    for _ in range(50):
        client.machine.ping(b"12345678")
        client.machine.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 65535})
        client.send()
        client.events(0.005)
    assert list(client.until(client.ask()).values()) == ["200"]
    client.sock.close()


def test_a_client_that_waits_for_our_word(slow):
    client = Loose(slow)
    stream = client.begin("/embed", expect="100-continue")
    informed = h2.events.InformationalResponseReceived
    assert any(isinstance(event, informed) for event in client.events(until=(informed, *ENDS)))
    client.machine.send_data(stream, BODY, end_stream=True)
    client.send()
    assert client.until(stream) == {stream: "200"}
    client.sock.close()


def test_a_call_that_the_client_resets_is_dropped(tiny_folder):
    running = Running(tiny_folder, batch_seconds=600)
    running.wait_for_health()
    client = Loose(running)
    first = client.ask()
    running.wait_for_calls(1)
    for number in range(1, 9):
        stream = client.ask()
        running.wait_for_calls(2)
        client.machine.reset_stream(stream)
        client.send()
        wait_until(lambda number=number: running.log().count("the client left") == number)
    before, last = running.metric("bei_batch_fill_count"), client.ask()
    ends: dict[int, str] = {}
    wait_until(lambda: running.go_on() or ends.update(client.until(last, seconds=0.1)) or last in ends)
    assert {first: ends[first], last: ends[last]} == {first: "200", last: "200"}
    assert running.metric("bei_batch_fill_count") - before <= 3, "abandoned work ran all the same"
    client.sock.close()
    _, log = running.stop()
    assert log.count("499 POST /embed: the client left") == 8


def test_calls_that_are_reset_give_their_window_back(slow):
    """The bytes that came of a body count in the window of the connection, and other calls send their bodies in it."""
    client = Loose(slow)
    for _ in range(2 * client.machine.outbound_flow_control_window // 4096):
        stream, limit = client.head(HEAD, end=False), time.monotonic() + LIMIT
        while client.machine.local_flow_control_window(stream) < 4096 and time.monotonic() < limit:
            client.events(0.05, until=h2.events.WindowUpdated)
        client.machine.send_data(stream, b" " * 4096)
        client.machine.reset_stream(stream)
        client.send()
    client.sock.close()


def test_what_is_not_done_in_time_is_503_over_either(tiny_folder):
    running = Running(tiny_folder, batch_seconds=3, drain_seconds=1)
    running.wait_for_health()
    client, other = Loose(running), connect(running)
    stream = client.ask()
    other.sendall(b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY)
    running.wait_for_calls(2)
    running.process.send_signal(signal.SIGTERM)
    assert client.until(stream)[stream] == "503"
    assert everything(other).startswith(b"HTTP/1.1 503 ")
    client.sock.close()
    other.close()
    exit_status, log = running.process.wait(LIMIT), running.log()
    assert exit_status == 0
    assert "2 calls did not finish in 1 s, and get a 503; --drain-seconds gives more time" in log
    assert not re.search("Traceback|graceful|[Tt]ask|ASGI", log)


LONG = [*HEAD, *[("x-long", "y" * 3900)] * 15]  # of which all but the first are a byte each on the wire
METRICS = [(":method", "GET"), (":path", "/metrics"), *HEAD[2:]]


@pytest.mark.parametrize(("head", "window"), [(LONG, None), (METRICS, 0)])
def test_what_a_connection_holds_is_bounded(tiny_folder, head, window):
    """Request heads of calls without bodies, and answers that are not read."""
    running = Running(tiny_folder)
    running.wait_for_health()
    before = resident(running)
    clients = [Loose(running, window=window) for _ in range(8)]
    for client in clients:
        client.events(until=h2.events.RemoteSettingsChanged)
        with suppress(OSError):  # who sends many such heads is not listened to
            for _ in range(STREAMS):
                client.head(head, end=head is METRICS)
    other = Loose(running)
    assert other.until(stream := other.ask())[stream] == "200"
    assert resident(running) - before < 40_000_000
    for client in (*clients, other):
        client.sock.close()
    assert running.stop()[0] == 0


def test_calls_that_waited_for_others_are_answered(slow):
    client = Loose(slow)
    client.events(until=h2.events.RemoteSettingsChanged)
    streams = [client.head(LONG, end=False) for _ in range(19)]  # more than is held
    for stream in streams:
        client.machine.send_data(stream, BODY, end_stream=True)
        client.send()
    assert client.until(*streams) == dict.fromkeys(streams, "200")
    client.sock.close()


def test_heads_that_refer_to_the_table_have_a_bound(slow):
    """They are a few bytes on the wire, and 60 KB for the server to check; for calls, and for heads that are none."""
    for trailers in (False, True):
        client = Loose(slow)
        client.events(until=h2.events.RemoteSettingsChanged)
        with suppress(OSError):
            for _ in range(STREAMS):
                stream = client.head(HEAD if trailers else LONG, end=False)
                if trailers:
                    client.machine.send_headers(stream, LONG[len(HEAD) :], end_stream=True)
                    client.send()
        assert client.until(1 << 20).get(0) == "ENHANCE_YOUR_CALM"
        client.sock.close()


@pytest.mark.parametrize(("size", "times"), [(3_000, 4 * STREAMS), (19_000, 12)])
def test_heads_that_clients_send_cost_nothing(slow, size, times):
    client = Loose(slow)
    client.events(until=h2.events.RemoteSettingsChanged)
    head = [(":method", "GET"), (":path", "/health"), *HEAD[2:], *[("x-key", "y" * (size // 5))] * 5]
    for _ in range(times // 4):
        streams = [client.head(head) for _ in range(4)]
        assert client.until(*streams) == dict.fromkeys(streams, "200")
    client.sock.close()


MIDDLE = "y" * 500


@pytest.mark.parametrize("value", [*(f"{MIDDLE}{c}{MIDDLE}" for c in "\0\r\n"), f" {MIDDLE}", f"{MIDDLE}\t"])
def test_a_long_value_that_is_malformed_ends_its_stream(slow, value):
    client = Loose(slow)
    wrong, host, after = client.head([*HEAD, ("x", value)]), client.head([*HEAD, ("host", MIDDLE)]), client.ask()
    ends = client.until(wrong, host, after)
    assert ends == {wrong: "PROTOCOL_ERROR", host: "PROTOCOL_ERROR", after: "200"}
    client.sock.close()


def test_a_large_head_is_checked_without_a_look_at_each_byte():
    """h2 takes as long per byte as we take per field."""
    head = [(name.encode(), value.encode()) for name, value in LONG]

    def seconds(work: Callable[[], object]) -> float:
        started = time.process_time()
        for _ in range(50):
            work()
        return time.process_time() - started

    theirs = seconds(lambda: list(validate_headers(head, request_heads._REQUEST)))
    assert 4 * seconds(lambda: request_heads.check(head)) < theirs


def test_a_client_makes_our_table_of_headers_no_larger(slow):
    """A search in the table takes time in proportion to its size."""
    client = Loose(slow)
    client.machine.decoder.max_allowed_table_size = 1 << 30
    client.machine.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 1 << 30})
    client.send()
    while client.machine.local_settings.header_table_size < 1 << 30:  # until the server has said that it knows
        assert client.events(until=h2.events.SettingsAcknowledged)
    for _ in range(2):
        assert client.until(stream := client.ask())[stream] == "200"
    assert client.machine.decoder.header_table_size == 4096
    client.sock.close()


def test_a_connection_that_closes_waits_for_its_reader_only_so_long(monkeypatch):
    monkeypatch.setattr(connections, "READING_SECONDS", 0.1)

    class Stuck(asyncio.Transport):
        """A connection whose client reads nothing."""

        closing = aborted = False

        def write(self, data: bytes) -> None:
            pass

        def is_closing(self) -> bool:
            return self.closing

        def close(self) -> None:
            self.closing = True

        def abort(self) -> None:
            self.aborted = True

    async def scenario() -> None:
        transport = Stuck()
        protocol = Http2(SimpleNamespace(loaded_app=None), ServerState())
        protocol.connection_made(transport)
        protocol.shutdown()
        await until(lambda: transport.aborted)

    asyncio.run(scenario())
