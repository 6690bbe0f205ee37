"""The commands that install an optional part of this package."""

import json
import shlex
import sys
from typing import Any


def install(extra: str) -> str:
    """The command of pip for an extra: from the folder that this package was installed from, since an index may not
    have it, else by its name. It installs where this interpreter does."""
    place, pip = _origin(), f"{shlex.quote(sys.executable)} -m pip install"
    if not place.get("url", "").startswith("file://"):
        return f"{pip} 'bei[{extra}]'"
    editable = "-e " if place.get("dir_info", {}).get("editable") else ""
    return f"{pip} {editable}'{place['url'].removeprefix('file://')}[{extra}]'"


def _origin() -> dict[str, Any]:
    """The content of direct_url.json (PEP 610); empty for a package of an index, or a folder on PYTHONPATH."""
    from importlib.metadata import PackageNotFoundError, distribution  # takes as long as a small part of a start

    try:
        told = distribution("bei").read_text("direct_url.json")
    except PackageNotFoundError:
        return {}
    found: dict[str, Any] = json.loads(told) if told else {}
    return found
