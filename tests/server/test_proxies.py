"""A server behind a proxy: the prefix of its paths, and the client that a trusted proxy names."""

import asyncio
import json
import re

import httpx
import pytest

from bei.errors import SetupError
from bei.server.proxies import Proxies, behind_proxy
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.servers import serving

PROXY = "10.0.0.9"


def settings(**flags) -> Settings:
    return Settings.load(tiny_config(), environ={}, **flags)


def seen(scope: dict, **flags) -> tuple[str, str, str | None]:
    """Path, root_path and client of a scope as the application sees it."""
    found = {}

    async def application(scope, receive, send) -> None:
        found.update(scope)

    whole = {"path": "/embed", "headers": [], "client": (PROXY, 1), **scope}
    asyncio.run(behind_proxy(application, settings(**flags))(whole, None, None))
    return found["path"], found.get("root_path", ""), found["client"][0] if found["client"] else None


@pytest.mark.parametrize(
    ("path", "root_path", "ours"),
    [
        ("/emb/embed", "/emb", "/embed"),
        ("/embed", "/emb", "/embed"),  # the proxy removed it
        ("/emb", "/emb", "/"),
        ("/emb/", "/emb", "/"),
        ("/embedding", "/emb", "/embedding"),
        ("/a/b/v1/models", "/a/b", "/v1/models"),
    ],
)
def test_a_prefix_of_our_paths_is_removed_once(path, root_path, ours):
    assert seen({"path": path}, root_path=root_path)[:2] == (ours, root_path)


def test_the_prefix_of_a_trusted_proxy_counts():
    headers = [(b"x-forwarded-prefix", b"/emb/")]
    assert seen({"path": "/emb/embed", "headers": headers}, trust_proxy=PROXY)[:2] == ("/embed", "/emb")
    assert seen({"path": "/emb/embed", "headers": headers}, trust_proxy="10.0.0.8")[:2] == ("/emb/embed", "")
    assert seen({"headers": [(b"x-forwarded-prefix", b'/"><script>')]}, trust_proxy="*")[:2] == ("/embed", "")


FORWARDED = [
    ([(b"x-forwarded-for", b"1.2.3.4")], "1.2.3.4"),
    ([(b"x-forwarded-for", b"6.6.6.6, 1.2.3.4, 10.0.0.7")], "1.2.3.4"),  # the first one is the client's own invention
    ([(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"1.2.3.4:5678")], "1.2.3.4"),
    ([(b"x-forwarded-for", b"10.0.0.1, 10.0.0.2")], "10.0.0.1"),
    ([(b"forwarded", b'for="[2001:db8::7]:4711";proto=https, for=10.0.0.3')], "2001:db8::7"),
    ([(b"forwarded", b"proto=http; For=1.2.3.4 ;by=203.0.113.43"), (b"x-forwarded-for", b"6.6.6.6")], "1.2.3.4"),
    ([(b"x-forwarded-for", b"unknown, _hidden")], PROXY),
    ([(b"x-forwarded-for", b"")], PROXY),
    ([], PROXY),
]


@pytest.mark.parametrize(("headers", "client"), FORWARDED)
def test_a_trusted_proxy_names_the_client(headers, client):
    assert seen({"headers": headers}, trust_proxy="10.0.0.0/8")[2] == client


@pytest.mark.parametrize("peer", [("192.0.2.1", 1), None])
def test_another_peer_names_nobody(peer):
    headers = [(b"x-forwarded-for", b"1.2.3.4"), (b"forwarded", b"for=1.2.3.4")]
    assert seen({"headers": headers, "client": peer}, trust_proxy="10.0.0.0/8")[2] == (peer and peer[0])


def test_every_peer_is_trusted_by_a_star():
    headers = [(b"x-forwarded-for", b"1.2.3.4, 5.6.7.8")]
    assert seen({"headers": headers, "client": None}, trust_proxy="*")[2] == "1.2.3.4"


def test_an_ipv4_peer_of_an_ipv6_socket_is_itself():
    assert Proxies(["10.0.0.0/8"]).have("::ffff:10.0.0.9")
    assert not Proxies(["10.0.0.0/8"]).have("::ffff:11.0.0.9")


def test_a_flood_of_addresses_is_read_from_its_end():
    headers = [(b"x-forwarded-for", b",".join([b"1.2.3.4"] * 4000 + [b"5.6.7.8"]))]
    assert Proxies(["10.0.0.0/8"]).client(PROXY, headers) == "5.6.7.8"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"trust_proxy": "10.0.0.1/8"}, "setting trust_proxy: a proxy is an address or a network"),
        ({"trust_proxy": "nginx"}, "'nginx' is none"),
        ({"root_path": "emb"}, "setting root_path"),
        ({"root_path": "/emb/"}, "setting root_path"),
    ],
)
def test_settings_that_name_no_proxy_are_refused(flags, told):
    with pytest.raises(SetupError, match=re.escape(told)):
        settings(**flags)


def test_a_server_below_a_prefix(tmp_path, tiny_folder):
    """Its page and its document lead to paths that the proxy passes on, and its log names the client."""
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(tiny_config(tiny_folder)))
    flags = ("--root-path", "/emb", "--trust-proxy", "127.0.0.1", "--access-log", "--host", "::")
    log = tmp_path / "log"
    with serving(*flags, "--engine", "null", config=config, log=log) as url:
        headers = {"x-forwarded-for": "198.51.100.7", "host": "localhost"}
        for path in ("/emb/embed", "/embed"):
            assert httpx.post(url + path, json={"inputs": "a"}, headers=headers).status_code == 200
        assert httpx.get(f"{url}/emb/openapi.json").json()["servers"] == [{"url": "/emb"}]
        assert "text/html" in httpx.get(f"{url}/emb/docs").headers["content-type"]
    assert log.read_text().count("client=198.51.100.7") == 2
