"""The hosts that a request may name. A web page whose name resolves to this machine sends that name (DNS rebinding)."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from functools import lru_cache

from bei.errors import Malformed, Misdirected, short
from bei.settings import ServerSettings

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~!$&'()*+;=%-]+)(?::[0-9]*)?")


class Hosts:
    """`allowed` contains names, `*.names`, or `*` for all. Loopback names are always allowed. Without `loopback`, and
    with nothing `allowed`, every host is."""

    def __init__(self, allowed: Sequence[str] = (), *, loopback: bool = False):
        self._names = {name.lower() for name in allowed}
        self._all = "*" in allowed or not (allowed or loopback)

    def check(self, host: str | None, http_version: str) -> None:
        """Raises Malformed for a missing or malformed host, and Misdirected for a host that is not ours."""
        if host is None:
            if http_version == "1.0":  # it has no host, and no browser speaks it
                return
            raise Malformed("the request has no host; send one `Host` header")
        found = _HOST.fullmatch(host)
        if found is None:
            raise Malformed(f"the request's host is {short(host)}; send one `Host` header with a name and a port")
        name = found[1].lower().removesuffix(".")
        if not (self._all or _is_loopback(name) or self._is_allowed(name)):
            raise Misdirected(f"host {short(name)} is not served here; see --allowed-host")

    def _is_allowed(self, name: str) -> bool:
        if name in self._names:
            return True
        parts = name.split(".")
        return any(".".join(("*", *parts[i:])) in self._names for i in range(1, len(parts)))


def is_local(listener: socket.socket, settings: ServerSettings) -> bool:
    """Whether only this machine reaches a server, so far as the server knows: it listens on a loopback address or a
    Unix socket, and no setting names a proxy or the host of one."""
    if settings.allowed_host or settings.trust_proxy or settings.root_path:
        return False
    is_internet = listener.family in (socket.AF_INET, socket.AF_INET6)
    return not is_internet or ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def hosts_of(listener: socket.socket, allowed: Sequence[str]) -> Hosts:
    """The hosts of a server that listens at an address. On a loopback address these are loopback names and the allowed
    ones; on a Unix socket, which no browser reaches, all."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return Hosts(("*",))
    return Hosts(allowed, loopback=ipaddress.ip_address(listener.getsockname()[0]).is_loopback)


@lru_cache(maxsize=16)
def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
