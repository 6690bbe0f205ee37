"""sentence-transformers' Router (in older versions Asym): other modules for queries than for documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bei.errors import SetupError, short

_LOOKUP = "SparseStaticEmbedding"
ROUTERS = ("Router", "Asym")


@dataclass(frozen=True)
class Routes:
    """The folder of a look-up for queries, if there is one; the class and folder of each module for the other texts;
    the route of a text that names none."""

    queries: str | None
    others: Sequence[tuple[str, str]]
    default: str | None


def routes_of(config: Mapping[str, Any], file: str) -> Routes:
    """Raises SetupError for routes that differ in anything but a look-up for queries: two encoders would be served."""
    types, structure, parameters = (config.get(key) or {} for key in ("types", "structure", "parameters"))
    if not structure:
        raise SetupError(f"{file} lacks `structure`")
    if parameters.get("route_mappings"):
        raise SetupError(f"{file}: route_mappings are not supported; name the routes query and document")
    default = parameters.get("default_route")
    if default is None and parameters.get("allow_empty_key", True):
        default = next(iter(structure))
    routes = {name: [(types[id], id) for id in ids] for name, ids in structure.items()}
    if any(_name(kind) in ROUTERS for modules in routes.values() for kind, _ in modules):
        raise SetupError(f"{file}: a Router inside a Router is not supported")
    queries = routes.get("query", [])
    if set(routes) == {"query", "document"} and [_name(kind) for kind, _ in queries] == [_LOOKUP]:
        return Routes(queries[0][1], routes["document"], default)
    first, *more = routes.values()
    if any(route != first for route in more) or any(_name(kind) == _LOOKUP for kind, _ in first):
        raise SetupError(
            f"{file}: the routes {short(', '.join(routes))} have modules of their own; only a {_LOOKUP} for `query`, "
            "beside the modules of `document`, is supported"
        )
    return Routes(None, first, None)


def _name(kind: str) -> str:
    return kind.rsplit(".", 1)[-1]
