"""The instruction sets that the C++ is compiled for, the fastest first, chosen by what the processor reports."""

import platform
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from bei.errors import SetupError

_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
_AVX2 = ("avx2", "fma", "f16c")


@dataclass(frozen=True)
class Level:
    """`features` are flags of Linux's /proc/cpuinfo. Removing the underscores gives the compiler's flag:
    avx512_vnni → -mavx512vnni.

    `header` of cpp/ has the vectors.
    """

    name: str
    features: tuple[str, ...]
    header: str

    @property
    def has_bf16(self) -> bool:
        return "avx512_bf16" in self.features

    @property
    def options(self) -> list[str]:
        """Flags of the compiler."""
        return [*("-m" + feature.replace("_", "") for feature in self.features), f'-DBEI_VECTORS="{self.header}"']


LEVELS = (
    Level("avx512_bf16", (*_AVX2, *_AVX512, "avx512_vnni", "avx512_bf16"), "vec_avx512.h"),
    Level("avx512_vnni", (*_AVX2, *_AVX512, "avx512_vnni"), "vec_avx512.h"),
    Level("avx512", (*_AVX2, *_AVX512), "vec_avx512.h"),
    Level("avx2_vnni", (*_AVX2, "avx_vnni"), "vec_avx2.h"),
    Level("avx2", _AVX2, "vec_avx2.h"),
)


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
