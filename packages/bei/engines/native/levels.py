"""The instruction sets that the C++ is compiled for, the fastest first, chosen by what the processor reports."""

import platform
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from bei.errors import SetupError


@dataclass(frozen=True)
class Level:
    """`features` are flags of Linux's /proc/cpuinfo; `compiler_flags` let the compiler use them (cpp/isa/isa.h)."""

    name: str
    features: tuple[str, ...]
    compiler_flags: tuple[str, ...]

    @property
    def has_bf16(self) -> bool:
        return "avx512_bf16" in self.features


_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
_VNNI = (*_AVX512, "avx512_vnni")
_FOR_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_FOR_AVX512 = (*_FOR_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
_FOR_VNNI = (*_FOR_AVX512, "-mavx512vnni")

X86 = (
    Level("avx512_bf16", (*_VNNI, "avx512_bf16"), (*_FOR_VNNI, "-mavx512bf16")),
    Level("avx512_vnni", _VNNI, _FOR_VNNI),
    Level("avx512", _AVX512, _FOR_AVX512),
    Level("avx2_vnni", (*_AVX2, "avx_vnni"), (*_FOR_AVX2, "-mavxvnni")),
    Level("avx2", _AVX2, _FOR_AVX2),
)
LEVELS = X86
LEVELS_OF = {"x86_64": X86}
"""The levels of each machine, as `platform.machine` names it."""


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> Set[str]:
    """The processor features that the kernel reports; empty if it reports none, or the processor is not x86-64."""
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.exists():
        return frozenset()
    lines = cpuinfo.read_text().splitlines()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def level(flags: Set[str] | None = None) -> Level:
    """The fastest level that the processor has. Raises SetupError if it has none."""
    runnable = levels(flags)
    if not runnable:
        raise SetupError("the processor does not report AVX2, which the native engine needs")
    return runnable[0]


def levels(flags: Set[str] | None = None) -> list[Level]:
    """Every level that the processor has."""
    flags = processor_flags() if flags is None else flags
    return [level for level in LEVELS if set(level.features) <= flags]
