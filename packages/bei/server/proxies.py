"""A server behind a proxy: the prefix of its paths, and the client whose call the proxy passes on."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from bei.server.app import Application, Send
from bei.server.body_reader import Message, Receive
from bei.settings import ServerSettings

_FOR = re.compile(r"(?:^|[;,])\s*for=(\"[^\"]*\"|[^;,\s]*)", re.IGNORECASE)
_MOST = 32  # addresses of one call: a chain of proxies is short
_PREFIX = re.compile(r"(/[0-9A-Za-z._~-]+)*/?")


def behind_proxy(application: Application, settings: ServerSettings) -> Application:
    """The application with calls as their clients sent them: `root_path` in the scope and no longer in the path, and
    `client` the one whom a trusted proxy names. Without these settings it is the application itself."""
    if not settings.root_path and not settings.trust_proxy:
        return application
    trusted = Proxies(settings.trust_proxy)

    async def translated(scope: Message, receive: Receive, send: Send) -> None:
        await application(_translated(scope, settings.root_path, trusted), receive, send)

    return translated


def _translated(scope: Message, root_path: str, trusted: "Proxies") -> Message:
    found = dict(scope)
    peer = scope["client"][0] if scope.get("client") else ""
    if trusted.have(peer):
        found["client"] = (trusted.client(peer, scope["headers"]), 0)
        root_path = root_path or _prefix(scope["headers"])
    found["root_path"] = root_path
    path = scope["path"]
    if root_path and (path == root_path or path.startswith(root_path + "/")):
        found["path"] = path[len(root_path) :] or "/"
    return found


class Proxies:
    """The proxies whose headers are believed: addresses and networks; `*` for any peer, a Unix socket's too."""

    def __init__(self, trusted: Sequence[str]):
        self._any = "*" in trusted
        self._networks = [ip_network(of) for of in trusted if of != "*"]

    def have(self, address: str) -> bool:
        if self._any:
            return True
        found = _parsed(address)
        return found is not None and any(found in network for network in self._networks)

    def client(self, peer: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """The last address of the chain that is no trusted proxy, else the first one. A client may write any address
        before those that the proxies add, so the chain is read from its end. RFC 7239, section 5.2."""
        chain = _chain(headers)[-_MOST:]
        if self._any:
            return chain[0] if chain else peer
        return next((address for address in reversed(chain) if not self.have(address)), chain[0] if chain else peer)


def _chain(headers: Sequence[tuple[bytes, bytes]]) -> list[str]:
    """Of `Forwarded`, or without it of `X-Forwarded-For`: valid addresses, the client's first."""
    forwarded = _FOR.findall(_value(headers, b"forwarded"))
    given = forwarded or _value(headers, b"x-forwarded-for").split(",")
    return [str(found) for text in given if (found := _parsed(text)) is not None]


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """An address, perhaps with a port, in brackets or in quotes; None for another name. An IPv4 address that a socket
    of IPv6 shows is itself."""
    bare = text.strip().strip('"')
    bare = bare[1:].partition("]")[0] if bare.startswith("[") else bare
    bare = bare.partition(":")[0] if bare.count(":") == 1 else bare
    try:
        found = ip_address(bare)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _prefix(headers: Sequence[tuple[bytes, bytes]]) -> str:
    given = _value(headers, b"x-forwarded-prefix")
    return given.rstrip("/") if _PREFIX.fullmatch(given) else ""


def _value(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str:
    return ",".join(value.decode("latin-1") for key, value in headers if key == name)
