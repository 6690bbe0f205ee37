"""Findings about the machine: processor, memory, disk, GPUs, the hub, and the engines and extras that are here."""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bei import __version__, extras
from bei.doctor.findings import Finding, bytes_in_words
from bei.engines.cpus import allowed_cpus, available_cpus
from bei.engines.native import library
from bei.engines.native.levels import Level, levels
from bei.errors import SetupError, one_line
from bei.files import expanded

_EXTRAS = {
    "bulk": ("pyarrow", "bei embed"),
    "ray": ("ray", "bei embed --ray"),
    "plot": ("matplotlib", "bei bench --plot"),
    "otel": ("opentelemetry-exporter-otlp", "traces"),
    "s3": ("s3fs", "checkpoints in S3"),
    "gcs": ("gcsfs", "checkpoints in Google's storage"),
    "azure": ("adlfs", "checkpoints in Azure's storage"),
}
"""Extra → a package of it, and what needs it."""
_TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-rtx-cu13")
_LEAST_FREE = 2_000_000_000  # bytes for a library, a plan and a small checkpoint


def machine(cache_dir: Path, root: Path = Path("/")) -> Iterator[Finding]:
    """Findings about the system. `root` holds proc and sys."""
    yield Finding("bei", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    quota = available_cpus(root / "sys/fs/cgroup/cpu.max")
    usable = f"{quota} of {os.cpu_count()} processors for this process"
    yield Finding("processor", "ok", f"{_processor(root)}, {usable}")
    yield _memory(root)
    yield _disk(cache_dir)
    yield _gpus(root)
    yield _hub()


def engines(cache_dir: Path, root: Path = Path("/")) -> Iterator[Finding]:
    """Findings about each engine, in the order in which `auto` tries them on a CPU."""
    yield _native(expanded(cache_dir))
    torch = _version("torch")
    if torch:
        yield Finding("torch", "ok", torch)
    else:
        yield Finding("torch", "missing", "not installed; computes what native does not", extras.install("torch"))
    found = next((f"{name} {number}" for name in _TENSORRT if (number := _version(name))), None)
    if not _has_gpu(root):
        yield Finding("tensorrt", "missing", f"{found or 'not installed'}; it needs an NVIDIA GPU")
    elif found:
        yield Finding("tensorrt", "ok", found)
    else:
        yield Finding("tensorrt", "missing", "not installed; the fastest on a GPU", extras.install("tensorrt"))


def parts() -> Iterator[Finding]:
    """Findings about the extras."""
    for extra, (package, needed_for) in _EXTRAS.items():
        number = _version(package)
        if number:
            yield Finding(extra, "ok", f"{package} {number}")
        else:
            yield Finding(extra, "missing", f"{needed_for} needs {package}", extras.install(extra))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor(root: Path) -> str:
    try:
        told = (root / "proc/cpuinfo").read_text()
    except OSError:
        told = ""
    named = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    return one_line(named[1]) if named else platform.processor() or platform.machine()


def _memory(root: Path) -> Finding:
    try:
        fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE))
        total, free = 1024 * int(fields["MemTotal"]), 1024 * int(fields["MemAvailable"])
    except (OSError, KeyError):
        return Finding("memory", "ok", "the system does not say how much there is")
    try:
        limit = int((root / "sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # none, or "max"
        limit = total
    bound = f"; the container may use {bytes_in_words(limit)}" if limit < total else ""
    return Finding("memory", "ok", f"{bytes_in_words(total)}, {bytes_in_words(free)} free{bound}")


def _disk(cache_dir: Path) -> Finding:
    place = expanded(cache_dir).absolute()
    there = next(one for one in (place, *place.parents) if one.exists())
    if not os.access(there, os.W_OK):
        return Finding("disk", "fault", f"{there} cannot be written to", "export BEI_CACHE_DIR=A_FOLDER_OF_YOUR_OWN")
    free = shutil.disk_usage(there).free
    says = f"{bytes_in_words(free)} free for {place}"
    return Finding("disk", "ok", says) if free >= _LEAST_FREE else Finding("disk", "fault", says, "bei doctor --prune")


def _has_gpu(root: Path) -> bool:
    return (root / "proc/driver/nvidia/version").exists()


def _gpus(root: Path) -> Finding:
    if not _has_gpu(root):
        return Finding("GPU", "missing", "no driver of NVIDIA's (/proc/driver/nvidia/version); processors compute")
    told = [file.read_text() for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))]
    names = [found[1].strip() for text in told if (found := re.search(r"Model:\s*(.+)", text))]
    return Finding("GPU", "ok", one_line(", ".join(names)) or "a driver without a GPU")


def _hub() -> Finding:
    token = "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN, so no gated repositories"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return Finding("hub", "missing", "HF_HUB_OFFLINE: only what is in its cache is served", "unset HF_HUB_OFFLINE")
    return Finding("hub", "ok", f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}, not asked here; {token}")


def _native(cache_dir: Path) -> Finding:
    try:
        usable = levels()
    except SetupError as exc:
        return Finding("native", "missing", exc.message, None if _version("torch") else extras.install("torch"))
    best = usable[0]
    threads = f"level {best.name}, {len(allowed_cpus())} threads"
    if _is_compiled(best, cache_dir):
        return Finding("native", "ok", f"{threads}; its library is compiled")
    try:
        return Finding("native", "ok", f"{threads}; {library.compiler()} compiles it at the first start")
    except SetupError as exc:
        return Finding("native", "missing", exc.message, "apt-get install g++")


def _is_compiled(level: Level, cache_dir: Path) -> bool:
    name = library.name_of(level)
    return (library.BUILT / name).exists() or (cache_dir / "native" / name).exists()
