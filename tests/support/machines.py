"""Folders with the files in which Linux says which NUMA nodes and GPUs a machine has."""

from pathlib import Path

from bei.engines.devices import Machine

UUIDS = ("GPU-5a0d-1", "GPU-7b1e-2")
PLACES = ("0000:17:00.0", "0000:e3:00.0")


def machine(root: Path, *, nodes=(), gpus=0, allowed=range(8), **environ: str) -> Machine:
    """A machine with these NUMA nodes, and so many GPUs, one beside each half of the processors."""
    for number, cpus in enumerate(nodes):
        write(root / f"sys/devices/system/node/node{number}/cpulist", f"{cpus}\n")
    write(root / "sys/devices/system/node/possible", "0-63\n")
    for place, uuid, cpus in [*zip(PLACES, UUIDS, ("0-3", "4-7"), strict=True)][:gpus]:
        write(root / f"proc/driver/nvidia/gpus/{place}/information", f"Model: \t H100\nGPU UUID: \t {uuid}\n")
        write(root / f"sys/bus/pci/devices/{place}/local_cpulist", f"{cpus}\n")
    return Machine(root, environ, frozenset(allowed))


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
