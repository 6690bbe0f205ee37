"""The host of a request: exactly one, well-formed, and this server's."""

import socket

import h2.events
import httpx
import pytest

from bei.errors import Malformed, Misdirected, SetupError
from bei.server.hosts import Hosts, hosts_of
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.running import answering
from tests.support.sockets import Http2, connect, everything, status

LOOPBACK = [
    "localhost",
    "LOCALHOST:8080",
    "a.localhost",
    "localhost.",
    "127.0.0.1",
    "127.8.0.9:1",
    "[::1]",
    "[::1]:8080",
]
ELSEWHERE = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "0.0.0.0", "[::2]", "a"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_names_of_this_machine(host):
    Hosts(loopback=True).check(host, "1.1")
    Hosts(("api.example",), loopback=True).check(host, "1.1")


@pytest.mark.parametrize("host", ELSEWHERE)
def test_other_names_on_a_loopback_address(host):
    with pytest.raises(Misdirected, match="see --allowed-host"):
        Hosts(loopback=True).check(host, "1.1")
    Hosts().check(host, "1.1")
    Hosts(("*",), loopback=True).check(host, "1.1")


def test_names_that_are_allowed():
    hosts = Hosts(("API.example", "*.internal"))
    for host in ("api.example", "api.example:443", "API.EXAMPLE.", "a.internal", "a.b.internal"):
        hosts.check(host, "1.1")
    for host in ("example", "x.api.example", "internal", "a.internal.example"):
        with pytest.raises(Misdirected):
            hosts.check(host, "1.1")


@pytest.mark.parametrize("host", [None, "", "a b", "a, a", "a/b", "user@a", "[::1", "::1", "a:b", "a:1:2", "a\tb", "ä"])
def test_what_is_no_host(host):
    with pytest.raises(Malformed, match="send one `Host` header"):
        Hosts().check(host, "1.1")


def test_a_listener_says_whose_names():
    for family, address, loopback in [
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET, "127.0.0.2", True),
        (socket.AF_INET, "0.0.0.0", False),
        (socket.AF_INET6, "::1", True),
        (socket.AF_INET6, "::", False),
    ]:
        with socket.socket(family) as listener:
            listener.bind((address, 0))
            hosts = hosts_of(listener, ())
            if loopback:
                with pytest.raises(Misdirected):
                    hosts.check("evil.example", "1.1")
            else:
                hosts.check("evil.example", "1.1")


def test_a_unix_socket_has_no_names_of_its_own(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        hosts_of(listener, ()).check("evil.example", "1.1")


def settings(**options: object) -> Settings:
    return Settings.load(tiny_config("/tmp"), **{"environ": {}, **options})


def test_settings():
    assert settings().allowed_host == settings(allowed_host=()).allowed_host == ()
    assert settings(allowed_host=("a", "*.b,c")).allowed_host == ("a", "*.b", "c")
    assert settings(environ={"BEI_ALLOWED_HOST": "a, [::2]"}).allowed_host == ("a", "[::2]")
    for wrong in ("", "a:80", "http://a", "a*", "*.*"):
        with pytest.raises(SetupError, match="setting allowed_host"):
            settings(allowed_host=(wrong,))


@pytest.fixture(scope="module")
def server(tiny_folder):
    with answering(tiny_folder, allowed_host=["api.example"]) as running:
        yield running


@pytest.mark.parametrize("path", ["/health", "/info", "/embed", "/metrics", "/nowhere"])
@pytest.mark.parametrize("http2", [False, True])
def test_a_page_of_the_web_gets_nothing(server, path, http2):
    with httpx.Client(http1=not http2, http2=http2) as client:
        refused = client.get(server.url + path, headers={"host": "evil.example"})
        assert (refused.status_code, refused.json()["error_type"]) == (421, "Validation")
        assert "evil.example" in refused.json()["error"]
        for host in ("localhost", "api.example", "127.0.0.1:1"):
            assert client.get(f"{server.url}/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET /health HTTP/1.1\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost:\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a b\r\n", 400),
        (b"GET /health HTTP/1.0\r\n", 200),
        (b"GET /health HTTP/1.0\r\nHost: evil.example\r\n", 421),
        (b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n", 421),
        (b"GET http://localhost/health HTTP/1.1\r\nHost: evil.example\r\n", 200),
        (b"GET http://localhost/health HTTP/1.1\r\n", 400),
        (b"GET http://localhost/health HTTP/1.1\r\nHost: a\r\nHost: a\r\n", 400),
    ],
)
def test_one_host_over_http1(server, head, expected):
    with connect(server) as sock:
        sock.sendall(head + b"Connection: close\r\n\r\n")
        assert status(everything(sock)) == expected


def test_no_host_over_http2(server):
    client = Http2(server)
    client.machine.config.validate_outbound_headers = False
    client.machine.send_headers(1, [(":method", "GET"), (":path", "/health"), (":scheme", "http")], end_stream=True)
    client.send()
    events = client.events(until=(h2.events.ResponseReceived, h2.events.StreamReset))
    assert client.status(events) == ["400"] or any(isinstance(event, h2.events.StreamReset) for event in events)
    client.sock.close()
