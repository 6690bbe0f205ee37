"""Networks of proxies whose headers are believed."""

from ipaddress import ip_network
from typing import Any

from bei.errors import short

Networks = tuple[str, ...]


def split_networks(value: Any) -> Any:
    """One address or network, or several separated by commas or in a list; `*` is any. Raises ValueError."""
    given = (value,) if isinstance(value, str) else value
    networks = tuple(part.strip() for item in given for part in item.split(","))
    for network in networks:
        try:
            _ = network == "*" or ip_network(network)
        except ValueError:
            raise ValueError(
                f"a proxy is an address or a network, such as 10.0.0.0/8, or * for any; {short(network)} is none"
            ) from None
    return networks
