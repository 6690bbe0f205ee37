"""Hostile clients on a real socket: slow, endless, many, not reading; and TLS."""

import asyncio
import json
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import httpx
import pytest

from bei.errors import SetupError
from bei.server import connections, http1, listen
from benchmarks.attacks.attack import attacks
from tests.support.running import LIMIT, Running, answering, resident
from tests.support.sockets import Http2, connect, everything, is_open, status, wait_until_read
from tests.support.waiting import wait_until

PATIENCE = 0.5


@pytest.fixture
def start(tiny_folder) -> Iterator[Callable[..., Running]]:
    with ExitStack() as stack:

        def run(**options: object) -> Running:
            running = Running(tiny_folder, **options)
            stack.callback(running.kill)
            running.wait_for_health()
            return running

        yield run


@pytest.fixture(scope="module")
def hasty(tiny_folder) -> Iterator[Running]:
    """A server that waits half a second."""
    with answering(tiny_folder, patience=PATIENCE, payload_limit=8_000_000) as running:
        yield running


def trickle(sock: socket.socket, data: bytes = b"x") -> None:
    """Sends a byte every 50 ms until the server closes."""
    end = time.monotonic() + LIMIT
    sock.setblocking(False)
    while time.monotonic() < end:
        try:
            sock.send(data)
            if sock.recv(1, socket.MSG_PEEK) is not None:
                break
        except BlockingIOError:
            pass
        except OSError:
            break
        time.sleep(0.05)  # the client's pace
    sock.setblocking(True)
    sock.settimeout(LIMIT)


# -- request heads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opening", [b"GET /health HTTP/1.1\r\nx: ", b"\r\n", b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /"]
)
def test_a_slow_head_is_408(hasty, opening):
    with connect(hasty) as sock:
        started = time.monotonic()
        sock.sendall(opening)
        if b"\r\n\r\n" in opening:
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        trickle(sock, b"\r\n" if opening == b"\r\n" else b"x")
        assert PATIENCE * 0.8 < time.monotonic() - started < LIMIT
        reply = everything(sock)
    assert status(reply) == 408
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error_type"] == "Validation"


def test_a_slow_head_of_an_openai_route_has_its_shape(hasty):
    with connect(hasty) as sock:
        sock.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: ")
        reply = everything(sock)
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == 408


@pytest.mark.parametrize("line", [b"x: " + b"y" * http1.MAX_REQUEST_HEAD, b"\r\n".join([b"a: b"] * 20_000)])
def test_a_large_head_is_431(hasty, line):
    with connect(hasty) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\n" + line)
        reply = everything(sock)
    assert status(reply) == 431
    assert re.search("larger than 65536 bytes|more than 128 headers", reply.decode())


CHUNKED = b"POST /embed HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"


@pytest.mark.parametrize(("opening", "more"), [(b"GET /health HTTP/1.1\r\n", b""), (CHUNKED, b"\r\n")])
def test_headers_and_trailers_are_not_kept_until_there_are_too_many(start, opening, more):
    """As objects, 15,000 in 60 KB take 2 MB."""
    running = start()
    before = resident(running)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(running)) for _ in range(50)]
        for client in clients:
            client.sendall(opening + b"a:\r\n" * 15_000)
        wait_until_read(*clients)
        assert resident(running) - before < 30_000_000
        for client in clients:
            client.sendall(more)
        assert {status(client.recv(65536)) for client in clients} == {400 if more else 431}


@pytest.mark.parametrize("http2", [False, True])
def test_many_headers_are_431(hasty, http2):
    with httpx.Client(http1=not http2, http2=http2) as client:
        few = {f"x-{i}": "y" for i in range(connections.MAX_HEADERS - 20)}
        assert client.get(f"{hasty.url}/health", headers=few).status_code == 200
        reply = client.get(f"{hasty.url}/health", headers={f"x-{i}": "y" for i in range(connections.MAX_HEADERS + 1)})
    assert (reply.status_code, reply.json()["error_type"]) == (431, "Validation")


def test_what_is_no_http_is_400_in_our_shape(hasty):
    with connect(hasty) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
        reply = everything(sock)
    assert status(reply) == 400
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error_type"] == "Validation"


JAVA = (  # as java.net.http.HttpClient of OpenJDK 17 begins on a port without TLS
    b"POST /embed HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 17\r\nHost: 127.0.0.1\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n"
    b"User-Agent: Java-http-client/17.0.9\r\n\r\n"
)
APACHE = (  # as Apache HttpClient 5.4
    b"POST /embed HTTP/1.1\r\nAccept-Encoding: gzip, x-gzip, deflate\r\nHost: 127.0.0.1\r\nContent-Length: 17\r\n"
    b"Connection: keep-alive, Upgrade\r\nUpgrade: TLS/1.2\r\nUser-Agent: Apache-HttpClient/5.4\r\n\r\n"
)


@pytest.mark.parametrize("head", [JAVA, APACHE])
def test_an_upgrade_is_ignored_and_the_body_read(hasty, head):
    body = b'{"inputs": "cat"}'
    with connect(hasty) as sock:
        for part in (head[:100], head[100:], body, head + body):
            sock.sendall(part)
            wait_until_read(sock)
        received = b""
        while received.count(b"HTTP/1.1 ") < 2:
            received += sock.recv(65536)
    assert received.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize("key", [{}, {"api_key": "k1"}])
def test_a_pipeline_waits_outside(start, key):
    running = start(**key)
    before, requests = resident(running), b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000
    with connect(running) as sock:
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            for _ in range(1000):
                sock.sendall(requests)
        assert resident(running) - before < 20_000_000
        assert httpx.get(f"{running.url}/health").status_code == 200


@pytest.mark.parametrize("name", attacks("http"))
def test_attacks_leave_a_server_that_answers(hasty, name):
    before = resident(hasty)
    asyncio.run(attacks("http")[name](hasty.port, time.monotonic() + 0.5))
    assert httpx.post(f"{hasty.url}/embed", json={"inputs": "cat"}, timeout=LIMIT).status_code == 200
    assert resident(hasty) - before < 100_000_000


# -- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", [b"content-length: 4000", b"transfer-encoding: chunked"])
def test_a_slow_body_is_408(hasty, framing):
    with connect(hasty) as sock:
        started = time.monotonic()
        sock.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\n" + framing + b"\r\n\r\n")
        trickle(sock, b"1\r\nx\r\n" if b"chunked" in framing else b"x")
        assert PATIENCE * 0.8 < time.monotonic() - started < LIMIT
        reply = everything(sock)
    assert status(reply) == 408
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == 408


def test_a_slow_body_over_http2_is_408(hasty):
    client = Http2(hasty)
    client.begin("/v1/embeddings")
    events = client.events(until=h2.events.ResponseReceived)
    assert client.status(events) == ["408"]
    client.sock.close()


def test_a_body_at_a_fair_pace_takes_its_time(hasty):
    body = json.dumps({"inputs": "the cat", "note": "x" * 40_000}).encode()
    with connect(hasty) as sock:
        sock.sendall(b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 8000):  # above body_reader.RATE, and beyond body_reader.SECONDS
            sock.sendall(body[start : start + 8000])
            time.sleep(0.15)  # the client's pace
        assert sock.recv(12) == b"HTTP/1.1 200"


def test_all_bodies_together_are_bounded(start):
    running = start(payload_limit=4_000_000, max_bytes_in_flight=5_000_000)
    head = b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3000000\r\n\r\n"
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(running)) for _ in range(6)]
        for client in clients:
            client.sendall(head + b" " * 2_900_000)
        wait_until_read(*clients)
        for client in clients:
            client.sendall(b" " * 100_000)
        assert [status(client.recv(65536)) for client in clients].count(429) >= 5  # whichever came first is read
    for _ in range(3):  # what was held is free again
        assert httpx.post(f"{running.url}/embed", json={"inputs": "a", "note": "x" * 3_900_000}).status_code == 200


def test_large_bodies_that_come_slowly_leave_room_for_others(start):
    running = start(payload_limit=4_000_000, max_bytes_in_flight=8_000_000)
    head = b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
    with ExitStack() as stack:
        for size in (3_900_000, 2_000_000, 1_900_000, 1_900_000):
            client = stack.enter_context(connect(running))
            client.sendall(head % (size + 1) + b" " * size)
            wait_until_read(client)
        assert httpx.post(f"{running.url}/embed", json={"inputs": "a", "note": "x" * 900_000}).status_code == 200
        assert httpx.post(f"{running.url}/embed", json={"inputs": "a", "note": "x" * 3_900_000}).status_code == 429


def test_many_slow_clients_take_little_memory(start):
    running = start(max_connections=2000)
    before = resident(running)
    with ExitStack() as stack:
        for i in range(900):
            sock = stack.enter_context(connect(running))
            head = b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 60000000\r\n\r\n"
            sock.sendall(b"GET /" if i % 2 else head + b" " * 9000)
        assert httpx.get(f"{running.url}/health").status_code == 200
        assert resident(running) - before < 120_000_000
    assert httpx.post(f"{running.url}/embed", json={"inputs": "a"}).status_code == 200


@pytest.mark.parametrize(("line", "expected"), [(b"POST /embed", 401), (b"GET /health", 200), (b"HEAD /metrics", 200)])
def test_a_body_that_nobody_reads_is_not_kept(start, line, expected):
    running = start(payload_limit=60_000_000, api_key="k1")
    before = resident(running)
    with connect(running) as sock:
        sock.sendall(line + b" HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000000\r\n\r\n" + b" " * 49_999_000)
        wait_until_read(sock)
        assert resident(running) - before < 20_000_000
        sock.sendall(b" " * 1000)
        assert status(sock.recv(65536)) == expected


def test_a_client_without_a_key_is_told_before_it_sends(start):
    running = start(api_key="k1")
    with connect(running) as sock:
        sock.sendall(b"POST /embed HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 500\r\n\r\n")
        assert status(sock.recv(65536)) == 401


# -- answers that are not read ---------------------------------------------------------------------------------------

LARGE = {"inputs": ["the cat sat on the mat"] * 2000}  # about 2 MB to answer


def test_a_client_that_does_not_read_is_cut_off(hasty):
    body = json.dumps(LARGE).encode()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", hasty.port))
        sock.settimeout(LIMIT)
        for _ in range(8):  # more than the kernel takes
            sock.sendall(b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: not is_open(sock))
        with pytest.raises(OSError):
            received = everything(sock)
            assert received.count(b"HTTP/1.1 200") < 8
            raise ConnectionResetError


def test_a_client_that_reads_slowly_is_cut_off(hasty):
    """However steadily it reads, its answer occupies memory meanwhile."""
    body = json.dumps(LARGE).encode()  # 9 MB to answer
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", hasty.port))
        sock.settimeout(LIMIT)
        received, started = 0, time.monotonic()
        sock.sendall(b"POST /embed_all HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        with suppress(OSError):
            while part := sock.recv(4096):
                received += len(part)
                time.sleep(0.005)  # the client's pace
    assert PATIENCE * 0.8 < time.monotonic() - started < LIMIT
    assert received < 8_000_000


def test_a_client_that_does_not_read_is_cut_off_by_a_drain(start):
    running = start(drain_seconds=1)
    body = json.dumps(LARGE).encode()  # 9 MB to answer
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", running.port))
        for _ in range(8):
            sock.sendall(
                b"POST /embed_all HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
        sock.recv(1, socket.MSG_PEEK)  # the first answer has begun, and is larger than the kernel takes
        exit_status, log = running.stop()
    assert exit_status == 0
    assert "1 connections are cut off: their clients do not read" in log
    assert not re.search("Traceback|graceful|[Tt]ask|ASGI", log)


def test_an_http2_client_that_opens_no_window_is_cut_off(hasty):
    client = Http2(hasty, window=0)
    stream = client.begin("/embed", **{"content-length": str(len(json.dumps({"inputs": "a"})))})
    client.machine.send_data(stream, json.dumps({"inputs": "a"}).encode(), end_stream=True)
    client.send()
    events = client.events()
    assert client.status(events) == ["200"]
    assert isinstance(events[-1], h2.events.ConnectionTerminated)
    client.sock.close()


# -- connections -----------------------------------------------------------------------------------------------------


def test_connections_are_counted(start):
    running = start(max_connections=5)
    with ExitStack() as stack:
        held = [stack.enter_context(connect(running)) for _ in range(5)]
        for sock in held:
            sock.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert status(sock.recv(65536)) == 200
        with connect(running) as one_more:
            assert everything(one_more) == b""
        held[0].close()
        running.wait_for_health()
        assert httpx.get(f"{running.url}/health").status_code == 200
    exit_status, log = running.stop()
    assert exit_status == 0
    assert "a connection is refused: there are 5; see max_connections" in log


@pytest.mark.parametrize("first", [b"", b"PRI * HT", b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"])
def test_a_connection_without_a_call_ends(hasty, first):
    started = time.monotonic()
    with connect(hasty) as sock:
        sock.sendall(first)
        assert (b"200" in everything(sock)) == first.startswith(b"GET")
    assert 2 * PATIENCE < time.monotonic() - started < LIMIT


@pytest.mark.parametrize("trickled", [b"", b"\x00\x40\x00\x01\x04\x00\x00\x00\x01"])
def test_an_http2_connection_without_a_call_ends(hasty, trickled):
    """Nor does an incomplete request head keep it."""
    started = time.monotonic()
    client = Http2(hasty)
    client.sock.sendall(trickled)
    if trickled:
        with pytest.raises(OSError):
            while time.monotonic() < started + LIMIT:
                client.sock.sendall(b"\x82")
                time.sleep(0.05)  # the client's pace
    else:
        assert isinstance(client.events()[-1], h2.events.ConnectionTerminated)
    assert 2 * PATIENCE < time.monotonic() - started < LIMIT
    client.sock.close()


def test_a_drain_does_not_wait_for_an_http2_connection_without_a_call(start):
    running = start()
    client = Http2(running)
    client.events(until=h2.events.RemoteSettingsChanged)
    exit_status, log = running.stop()
    assert exit_status == 0
    assert "timeout graceful shutdown exceeded" not in log
    client.sock.close()


def test_a_large_head_over_http2_ends_the_connection(hasty):
    client = Http2(hasty)
    client.machine.config.header_encoding = None
    client.begin("/embed", end=True, **{f"x-{i}": "y" * 1000 for i in range(100)})
    events = client.events()
    assert isinstance(events[-1], h2.events.ConnectionTerminated)
    assert client.status(events) == []
    client.sock.close()


# -- TLS -------------------------------------------------------------------------------------------------------------


def certificate(folder: Path, *options: str) -> dict[str, str]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = "openssl req -x509 -newkey rsa:2048 -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*words.split(), *(options or ["-nodes"]), "-keyout", key, "-out", cert], check=True, capture_output=True
    )
    return {"tls_cert": str(cert), "tls_key": str(key)}


@pytest.fixture(scope="module")
def secure(tiny_folder, tmp_path_factory) -> Iterator[tuple[Running, ssl.SSLContext]]:
    files = certificate(tmp_path_factory.mktemp("tls"))
    with answering(tiny_folder, patience=PATIENCE, **files) as running:
        yield running, ssl.create_default_context(cafile=files["tls_cert"])


@pytest.mark.parametrize("http2", [False, True])
def test_both_protocols_over_tls(secure, http2):
    running, trust = secure
    with httpx.Client(verify=trust, http1=not http2, http2=http2) as client:
        replies = [client.post(f"{running.url}/embed", json=LARGE) for _ in range(3)]
        assert {(reply.status_code, reply.http_version) for reply in replies} == {
            (200, "HTTP/2" if http2 else "HTTP/1.1")
        }
        assert client.post(f"{running.url}/embed", content=b"{").status_code == 400


@pytest.mark.parametrize(("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), ([], None)])
def test_alpn(secure, offered, chosen):
    running, trust = secure
    context = ssl.create_default_context(cadata=trust.get_ca_certs(binary_form=True)[0])
    if offered:
        context.set_alpn_protocols(offered)
    with context.wrap_socket(connect(running), server_hostname="127.0.0.1") as sock:
        assert sock.selected_alpn_protocol() == chosen


def test_old_tls_and_plain_http_are_refused(secure):
    running, _ = secure
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError):
        old.wrap_socket(connect(running))
    with connect(running) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert not everything(sock).startswith(b"HTTP/1.1 200")


def test_a_slow_head_over_tls_is_408(secure):
    running, trust = secure
    trust.set_alpn_protocols(["http/1.1"])
    with trust.wrap_socket(connect(running), server_hostname="127.0.0.1") as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nx: ")
        assert status(sock.recv(65536)) == 408


def test_bad_certificates_are_one_line(tmp_path):
    (tmp_path / "text").write_text("no PEM")
    files = certificate(tmp_path, "-passout", "pass:secret")
    with pytest.raises(SetupError, match="a key without a certificate"):
        listen.tls(None, Path(files["tls_key"]))
    for cert, key in [
        (tmp_path / "text", None),
        (tmp_path / "absent", None),
        files.values(),
        (files["tls_cert"], None),
    ]:
        with pytest.raises(SetupError, match="settings tls_cert and tls_key: ") as caught:
            listen.tls(cert, key)
        assert "\n" not in str(caught.value)


def test_an_idle_connection_over_tls_ends(secure):
    running, trust = secure
    with trust.wrap_socket(connect(running), server_hostname="127.0.0.1") as sock:
        assert sock.recv(1) == b""


def test_many_streams_over_tls(secure):
    running, trust = secure

    async def everyone() -> set[int]:
        async with httpx.AsyncClient(verify=trust, http1=False, http2=True, timeout=LIMIT) as client:
            posts = [client.post(f"{running.url}/embed", json={"inputs": f"the {i}"}) for i in range(50)]
            return {reply.status_code for reply in await asyncio.gather(*posts)}

    assert asyncio.run(everyone()) == {200}
