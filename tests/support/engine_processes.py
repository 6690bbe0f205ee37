"""The processes of engines."""

import os
from pathlib import Path


def children(of: int | None = None) -> list[int]:
    """The engine processes of a process, by default of this one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == (of or os.getpid()) and b"bei.engines.child" in stat.with_name("cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except (OSError, ValueError):
            continue
    return found
