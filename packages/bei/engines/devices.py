"""The devices of this machine that `--devices` names: GPUs, and the processors beside each; sets of processors; NUMA
nodes.

The order of GPUs, and so their numbers, is that of nvidia-smi. Within CUDA_VISIBLE_DEVICES numbers are places.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from bei.engines.cpus import allowed_cpus, available_cpus
from bei.errors import SetupError
from bei.settings.devices import kind_of, named, numbers_of

log = logging.getLogger("bei")

_GPUS = "proc/driver/nvidia/gpus"
_NODES = "sys/devices/system/node"
_PCI = "sys/bus/pci/devices"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Device:
    """`processors` are those that its process runs on; empty for all. `variables` are those of its process's
    environment."""

    name: str
    processors: frozenset[int] = frozenset()
    variables: Mapping[str, str] = field(default_factory=dict)


ANY = Device("any")
"""The one device of a model without `--devices`: its engine takes the GPU or the processors that it finds."""


@dataclass(frozen=True)
class Machine:
    """Where a machine says what it has, and the processors that this process may use."""

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    allowed: Set[int] = field(default_factory=allowed_cpus)

    def devices(self, named: str | None) -> Sequence[Device]:
        """The devices of a value of the setting. Raises SetupError for one that is not here."""
        if named is None:
            return (ANY,)
        if kind_of(named) == "cuda":
            return self._gpus(named)
        sets = self._nodes() if named == "numa" else [frozenset(numbers) for numbers in numbers_of(named)]
        return self._sets(sets)

    def _sets(self, sets: Sequence[frozenset[int]]) -> list[Device]:
        if not _binds():
            raise SetupError("devices: this system binds no process to processors; set threads")
        found = frozenset[int]().union(*sets)
        absent = sorted(found - self.allowed)
        if absent:
            raise SetupError(
                f"devices {named('cpu', absent)}: not among the processors of this process, which are "
                f"{named('cpu', self.allowed)}"
            )
        quota = available_cpus()
        if quota < len(found):
            log.warning("devices: %d processors are named, and the container has time for %d", len(found), quota)
        return [Device(named("cpu", numbers), numbers, {_VISIBLE: ""}) for numbers in sets]

    def _nodes(self) -> list[frozenset[int]]:
        """The processors of each NUMA node that this process may use."""
        folders = sorted((self.root / _NODES).glob("node[0-9]*"), key=lambda node: int(node.name[4:]))
        nodes = [_processors(folder / "cpulist") & self.allowed for folder in folders]
        found = [node for node in nodes if node]
        if not found:
            raise SetupError(
                f"devices numa: /{_NODES} has no node with processors of this process; name them (cpu:0-3)"
            )
        return found

    def _gpus(self, devices: str) -> list[Device]:
        visible = self._visible_gpus()
        if not visible:
            raise SetupError(f"devices {devices}: this machine shows no NVIDIA GPU (/{_GPUS}, {_VISIBLE})")
        chosen = [number for (number,) in numbers_of(devices)] or range(len(visible))
        absent = [number for number in chosen if number >= len(visible)]
        if absent:
            raise SetupError(f"devices cuda:{absent[0]}: this machine shows {len(visible)} GPUs, from cuda:0 on")
        return [self._gpu(number, *visible[number]) for number in chosen]

    def _gpu(self, number: int, name: str, bus: str | None) -> Device:
        beside = _processors(self.root / _PCI / bus / "local_cpulist") if bus and _binds() else frozenset()
        variables = {_VISIBLE: name, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return Device(f"cuda:{number}", frozenset(beside & self.allowed), variables)

    def _visible_gpus(self) -> list[tuple[str, str | None]]:
        """CUDA's name of each GPU, and its place on the PCI bus, where that is known."""
        places = sorted(folder.name for folder in (self.root / _GPUS).glob("*"))
        asked = self.environ.get(_VISIBLE)
        if asked is None:
            return [(str(number), place) for number, place in enumerate(places)]
        names = [name.strip() for name in asked.split(",") if name.strip()]
        return [(name, self._place(name, places)) for name in names if name != "-1"]

    def _place(self, name: str, places: Sequence[str]) -> str | None:
        if name.isdecimal():
            return places[int(name)] if int(name) < len(places) else None
        return next((place for place in places if self._uuid(place).startswith(name)), None)

    def _uuid(self, place: str) -> str:
        try:
            told = (self.root / _GPUS / place / "information").read_text()
        except OSError:
            return ""
        return found[1] if (found := re.search(r"GPU UUID:\s*(\S+)", told)) else ""


def _binds() -> bool:
    """Whether this system binds processes to processors."""
    return hasattr(os, "sched_setaffinity")


def _processors(file: Path) -> frozenset[int]:
    """Those of a list of the kernel (0-3,8); empty if it has none."""
    try:
        (numbers,) = numbers_of(f"cpu:{file.read_text().strip()}")
    except (OSError, ValueError):
        return frozenset()
    return frozenset(numbers)
