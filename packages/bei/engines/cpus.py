"""The processors that this process may use, by its affinity and by the container's quota."""

import os
from pathlib import Path

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def allowed_cpus() -> frozenset[int]:
    """The numbers of the processors that this thread, and what it starts, may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def available_cpus(cpu_max: Path = _CPU_MAX) -> int:
    """At least 1. A quota of 1.5 processors counts as 2 (cgroup v2, `cpu.max`: "quota period" in µs, or "max")."""
    cpus = len(allowed_cpus())
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, -(-int(quota) // int(period))))
