"""The features and the caches of this processor, as its system reports them. The names of features are those of Linux's
/proc/cpuinfo."""

import platform
import struct
import subprocess
import sys
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from bei.engines.cpus import allowed_cpus

_X86, _ARM = ("x86_64", "AMD64"), ("aarch64", "arm64")

# How Linux tells a program of features: by an entry of its auxiliary vector (AT_HWCAP, AT_HWCAP2), and a bit of that
# (arch/arm64/include/uapi/asm/hwcap.h).
_CAPABILITIES = {"asimd": (16, 1 << 1), "asimddp": (16, 1 << 20), "i8mm": (26, 1 << 13), "bf16": (26, 1 << 14)}

# macOS' names of these (developer.apple.com, "Determining instruction set characteristics").
_OF_MACOS = {
    "asimd": "hw.optional.AdvSIMD",
    "asimddp": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "bf16": "hw.optional.arm.FEAT_BF16",
}
_SYSCTL = "/usr/sbin/sysctl"
_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Caches:
    """The bytes of data that the first, the second and the last cache hold for one processor. Of a cache that several
    processors share, each has a part. Without a third cache the last one is the second."""

    first: int
    second: int
    last: int


DEFAULT_CACHES = Caches(32 << 10, 512 << 10, 1 << 20)
"""Sizes that most processors of servers have at least."""


def processor_flags(proc: Path = Path("/proc")) -> Set[str]:
    """The features of the processor; empty if the system reports none, or if it is neither x86-64 nor ARM64."""
    machine = platform.machine()
    if sys.platform == "darwin":
        return _of_macos(machine, _sysctl("hw.optional", "machdep.cpu"))
    if machine in _X86:
        return _listed(proc / "cpuinfo", "flags")
    return _of_arm(proc) if machine in _ARM else frozenset()


def is_of_amd(flags: Set[str]) -> bool:
    """Whether a processor for x86-64 is AMD's, which alone have sse4a."""
    return "sse4a" in flags


def caches(cpus: Path = _CPUS) -> Caches:
    """Those of the first processor that this process may use; of `DEFAULT_CACHES` what the system does not tell."""
    told = (
        _macos_caches(_sysctl("hw")) if sys.platform == "darwin" else _linux_caches(cpus / f"cpu{min(allowed_cpus())}")
    )
    if not told.keys() - {1}:
        told = {2: DEFAULT_CACHES.second, 3: DEFAULT_CACHES.last} | told
    return Caches(told.get(1, DEFAULT_CACHES.first), told.get(2, DEFAULT_CACHES.second), told[max(told)])


def _linux_caches(cpu: Path) -> dict[int, int]:
    """One processor's part of each level, in bytes (Documentation/ABI/testing/sysfs-devices-system-cpu)."""
    parts = {}
    for cache in cpu.glob("cache/index*"):
        try:
            kind = (cache / "type").read_text().strip()
            level, size = int((cache / "level").read_text()), (cache / "size").read_text().strip()
            shared_by = int((cache / "shared_cpu_map").read_text().replace(",", ""), 16).bit_count()
            part = (int(size.removesuffix("K")) << 10) // shared_by
        except (OSError, ValueError, ZeroDivisionError):  # a virtual machine may lack any of them
            continue
        if kind != "Instruction" and part:
            parts[level] = part
    return parts


def _macos_caches(values: Mapping[str, str]) -> dict[int, int]:
    """The same. Apple's processors have several kinds of cores, of which perflevel0 is the fastest; on Intel's,
    `cacheconfig` has how many processors share the memory and each level."""
    shared_by = [int(count) for count in values.get("hw.cacheconfig", "").split()]
    parts = {}
    for level, name in enumerate(("l1dcachesize", "l2cachesize", "l3cachesize"), 1):
        size = values.get(f"hw.perflevel0.{name}", values.get(f"hw.{name}", "0"))
        sharing = values.get(f"hw.perflevel0.cpusperl{level}", shared_by[level] if level < len(shared_by) else 1)
        if part := int(size) // max(1, int(sharing)):
            parts[level] = part
    return parts


def _of_arm(proc: Path) -> Set[str]:
    """By the auxiliary vector, which an emulator sets, too; /proc/cpuinfo where it may not be read."""
    try:
        vector = dict(struct.iter_unpack("=QQ", (proc / "self/auxv").read_bytes()))
    except (OSError, struct.error):
        return _listed(proc / "cpuinfo", "Features")
    return frozenset(name for name, (entry, bit) in _CAPABILITIES.items() if vector.get(entry, 0) & bit)


def _listed(cpuinfo: Path, title: str) -> Set[str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith(title)), "").split())


def _of_macos(machine: str, values: Mapping[str, str]) -> Set[str]:
    if machine in _ARM:
        return frozenset(name for name, key in _OF_MACOS.items() if values.get(key) == "1") | {"asimd"}
    lists = (values.get(key, "") for key in ("machdep.cpu.features", "machdep.cpu.leaf7_features"))
    return frozenset(" ".join(lists).lower().split())


def _sysctl(*names: str) -> dict[str, str]:
    """Values of the kernel by their names, of all names that begin with one of these; empty where it does not tell."""
    try:
        said = subprocess.run([_SYSCTL, *names], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
