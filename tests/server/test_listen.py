"""The server on a real socket: start, both protocols, big bodies, clients that leave, signals."""

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from bei.errors import SetupError
from bei.server import connections, listen
from tests.support.running import LIMIT, Running, answering
from tests.support.waiting import wait_until


@pytest.fixture
def start(tiny_folder) -> Iterator[Callable[..., Running]]:
    started = []

    def run(**options: object) -> Running:
        started.append(Running(tiny_folder, **options))
        return started[-1]

    yield run
    for server in started:
        server.kill()


@pytest.fixture(scope="module")
def server(tiny_folder) -> Iterator[Running]:
    """A server for tests that only send requests; bodies of up to 1 MB."""
    with answering(tiny_folder, payload_limit=1_000_000) as running:
        yield running


BODY = {"inputs": ["the cat", "it"]}
LONG = 600.0  # seconds: no test waits so long


def embed(running: Running, inputs: list[str] = BODY["inputs"]) -> socket.socket:
    """A client that has asked."""
    body = json.dumps({"inputs": inputs}).encode()
    client = socket.create_connection(("127.0.0.1", running.port), timeout=LIMIT)
    client.sendall(b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    return client


def test_503_while_loading_then_200(start):
    running = start(load_seconds=LONG)
    running.wait_for_health(503)
    assert httpx.get(f"{running.url}/health/live").status_code == 200
    refused = httpx.post(f"{running.url}/embed", json=BODY)
    assert (refused.status_code, refused.json()["error_type"]) == (503, "Unhealthy")
    running.go_on()
    running.wait_for_health(200)
    assert httpx.post(f"{running.url}/embed", json=BODY).status_code == 200


def test_a_load_that_fails_ends_with_2_and_one_line(start):
    running = start(load_seconds=0.1, batch_seconds=-1)
    assert running.process.wait(LIMIT) == 2
    log = running.log()
    assert "it cannot be loaded" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("http2", [False, True])
def test_both_protocols_on_one_port(server, http2):
    with httpx.Client(http1=not http2, http2=http2) as client:
        replies = [client.post(f"{server.url}/embed", json=BODY) for _ in range(3)]
        assert {reply.http_version for reply in replies} == {"HTTP/2" if http2 else "HTTP/1.1"}
        assert {reply.status_code for reply in replies} == {200}
        assert client.get(f"{server.url}/nowhere").status_code == 404
        assert client.post(f"{server.url}/embed", content=b"{").status_code == 400


def test_many_streams_on_one_http2_connection(server):
    async def everyone() -> list[int]:
        async with httpx.AsyncClient(http1=False, http2=True, timeout=LIMIT) as client:
            replies = [client.post(f"{server.url}/embed", json={"inputs": f"the {i}"}) for i in range(100)]
            return [reply.status_code for reply in await asyncio.gather(*replies)]

    assert asyncio.run(everyone()) == [200] * 100


def test_a_connection_that_opens_byte_by_byte(server):
    for opening in (
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"PROPFIND / HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT) as sock:
            for byte in opening:
                sock.sendall(bytes([byte]))
            assert sock.recv(12).startswith(b"HTTP/1.1 ")


def test_keep_alive_and_pipelining(server):
    request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT) as sock:
        sock.sendall(request * 5)
        received = b""
        while received.count(b"HTTP/1.1 200") < 5:
            received += sock.recv(65536)
        sock.sendall(request)
        assert sock.recv(12) == b"HTTP/1.1 200"
    assert connections.KEEP_ALIVE_SECONDS >= 60


def test_head_has_no_body(server):
    reply = httpx.head(f"{server.url}/info")
    assert (reply.status_code, reply.content) == (200, b"")
    assert int(reply.headers["content-length"]) > 100


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("size", [1_100_000, 1_900_000])
def test_a_body_too_large_is_drained_and_answered(server, size, http2):
    with httpx.Client(http1=not http2, http2=http2, timeout=LIMIT) as client:
        reply = client.post(f"{server.url}/v1/embeddings", content=b" " * size)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, 413)
    with httpx.Client(timeout=LIMIT) as client:
        chunks = (b" " * 100_000 for _ in range(size // 100_000))  # no content-length
        assert client.post(f"{server.url}/embed", content=chunks).status_code == 413


def test_a_client_that_waits_for_our_word_before_a_large_body(server):
    head = b"POST /embed HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 9000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT) as sock:
        sock.sendall(head)
        assert sock.recv(12) == b"HTTP/1.1 413"


def test_an_endless_body_is_cut_off(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT) as sock:
        sock.sendall(b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900000000\r\n\r\n")
        with pytest.raises(OSError):
            for _ in range(900):
                sock.sendall(b" " * 1_000_000)


def test_64_mb_body(start):
    running = start()
    running.wait_for_health()
    body = json.dumps({"inputs": "the cat", "note": "x" * 63_900_000}).encode()
    assert 63_000_000 < len(body) < 64_000_000
    assert httpx.post(f"{running.url}/embed", content=body, timeout=120).status_code == 200


def test_a_client_that_leaves_frees_its_work(start):
    running = start(batch_seconds=LONG)
    running.wait_for_health()
    with embed(running), ThreadPoolExecutor(1) as pool:
        running.wait_for_calls(1)
        for number in range(1, 9):
            with embed(running):
                running.wait_for_calls(2)
            wait_until(lambda number=number: running.log().count("499 POST /embed: the client left") == number)
        before = running.metric("bei_batch_fill_count")
        asked = pool.submit(httpx.post, f"{running.url}/embed", json=BODY)
        wait_until(lambda: running.go_on() or asked.done())
        assert asked.result().status_code == 200
    assert running.metric("bei_batch_fill_count") - before <= 3, "abandoned work ran all the same"
    _, log = running.stop()
    assert log.count("499 POST /embed: the client left") == 8


def test_sigterm_finishes_what_is_in_flight_and_refuses_the_rest(start):
    running = start(batch_seconds=LONG)
    running.wait_for_health()
    replies = []
    with httpx.Client(timeout=LIMIT) as client:
        working = threading.Thread(target=lambda: replies.append(client.post(f"{running.url}/embed", json=BODY)))
        working.start()
        running.wait_for_calls(1)
        running.process.send_signal(signal.SIGTERM)
        running.wait_for_log("SIGTERM: draining")
        refused = httpx.post(f"{running.url}/embed", json=BODY, timeout=LIMIT)
        unhealthy = httpx.get(f"{running.url}/health/ready", timeout=LIMIT)
        running.go_on()
        working.join(LIMIT)
    for answer in (refused, unhealthy):
        assert (answer.status_code, answer.headers["connection"], answer.headers["retry-after"]) == (503, "close", "1")
    status, log = running.process.wait(LIMIT), running.log()
    assert (status, replies[0].status_code) == (0, 200)
    assert replies[0].headers["connection"] == "close"
    assert "SIGTERM: draining, 1 calls in flight" in log


def test_a_drain_finishes_the_oldest_first(tiny_folder):
    """There are six seconds of work and three to drain: fair sharing would finish none."""
    running = Running(tiny_folder, batch_seconds=0.075, max_num_tokens=100, drain_seconds=3)  # a text a batch
    running.wait_for_health()
    clients = []
    for number in range(16):
        clients.append(embed(running, ["the cat " * 50] * 5))
        running.wait_for_calls(number + 1)
    status, log = running.stop()
    statuses = [int(client.recv(12)[9:]) for client in clients]
    for client in clients:
        client.close()
    finished = statuses.count(200)
    assert status == 0
    assert finished >= 2
    assert statuses == [200] * finished + [503] * (16 - finished)
    assert "SIGTERM: draining, 16 calls in flight" in log


def test_sigterm_while_loading_ends_at_once(start):
    running = start(load_seconds=LONG)
    running.wait_for_health(503)
    status, _ = running.stop()
    assert status == 0


def test_a_second_signal_does_not_wait(start):
    running = start(batch_seconds=LONG, drain_seconds=LONG)
    running.wait_for_health()
    with embed(running):
        running.wait_for_calls(1)
    running.wait_for_log("the client left")
    with embed(running):
        running.wait_for_calls(1)
        running.process.send_signal(signal.SIGTERM)
        running.wait_for_log("SIGTERM: draining")
        status, _ = running.stop()
    assert status not in (0, None)


def test_a_port_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(
            SetupError, match=r"cannot listen on 127\.0\.0\.1:.*in use; choose another with --host or --port"
        ):
            listen.bind(*taken.getsockname())
