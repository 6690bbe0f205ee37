"""`/models/NAME` as the base URL of one model, for clients whose bodies name none: TEI's and huggingface_hub's."""

from bei.api.call import Call
from bei.api.table import TABLE
from bei.serving.registry import Registry

_PARENT = "/models/"


def enter(registry: Registry, call: Call) -> None:
    """Below the base URL of a model, a call is about that model, whatever its body says: its path becomes the rest of
    the path. A POST to the base URL itself is one to `/`."""
    if not call.path.startswith(_PARENT):
        return
    for name in sorted(registry.known, key=len, reverse=True):
        rest = call.path.removeprefix(_PARENT + name)
        if rest == "" and call.method == "POST":
            rest = "/"
        if rest != call.path and rest.startswith("/") and TABLE.has(rest):
            call.path, call.base = rest, name
            return
