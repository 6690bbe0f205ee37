"""The instruction sets that the C++ is compiled for, chosen by what the processor reports."""

from collections.abc import Set
from dataclasses import dataclass

from bei.engines.native import tiles
from bei.engines.processor import is_of_amd, processor_flags
from bei.errors import SetupError, short

_HAVE_BF16 = {"avx512_bf16", "bf16"}


@dataclass(frozen=True)
class Level:
    """`features` are those of engines/processor.py; `compiler_flags` let the compiler use them (cpp/isa/isa.h)."""

    name: str
    features: tuple[str, ...]
    compiler_flags: tuple[str, ...]

    @property
    def has_tiles(self) -> bool:
        return "amx_tile" in self.features

    @property
    def has_bf16(self) -> bool:
        return not _HAVE_BF16.isdisjoint(self.features)


_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
_VNNI = (*_AVX512, "avx512_vnni")
_FOR_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_FOR_AVX512 = (*_FOR_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
_FOR_VNNI = (*_FOR_AVX512, "-mavx512vnni")
_BF16 = (*_VNNI, "avx512_bf16")
_FOR_BF16 = (*_FOR_VNNI, "-mavx512bf16")

_AVX512_BF16 = Level("avx512_bf16", _BF16, _FOR_BF16)
_AVX512_VNNI = Level("avx512_vnni", _VNNI, _FOR_VNNI)

X86 = (
    Level("amx", (*_BF16, *tiles.FEATURES), (*_FOR_BF16, "-mamx-tile", "-mamx-int8", "-mamx-bf16")),
    _AVX512_BF16,
    _AVX512_VNNI,
    Level("avx512", _AVX512, _FOR_AVX512),
    Level("avx2_vnni", (*_AVX2, "avx_vnni"), (*_FOR_AVX2, "-mavxvnni")),
    Level("avx2", _AVX2, _FOR_AVX2),
)

_DOTPROD = ("asimd", "asimddp")

ARM = (
    Level("neon_i8mm", (*_DOTPROD, "i8mm", "bf16"), ("-march=armv8.2-a+dotprod+i8mm+bf16",)),
    Level("neon_dotprod", _DOTPROD, ("-march=armv8.2-a+dotprod",)),
    Level("neon", ("asimd",), ("-march=armv8-a",)),
)
LEVELS = X86 + ARM
LEVELS_OF = {"x86_64": X86, "aarch64": ARM, "arm64": ARM}
"""The levels of each machine, as `platform.machine` names it. macOS has a name of its own for ARM64."""


def named(names: str) -> list[Level]:
    """Levels by their names, with commas between. Raises SetupError."""
    by_name = {level.name: level for level in LEVELS}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in by_name:
            raise SetupError(f"there is no level {short(name)}; there are {', '.join(by_name)}")
    return [by_name[name] for name in wanted]


def level(flags: Set[str] | None = None) -> Level:
    """The fastest level that the processor has. Raises SetupError if it has none."""
    return levels(flags)[0]


def levels(flags: Set[str] | None = None) -> list[Level]:
    """Each level that the processor has and the system permits, the fastest first. Raises SetupError if none is."""
    flags = tiles.usable(processor_flags()) if flags is None else flags
    runnable = [level for level in _by_speed(flags) if set(level.features) <= flags]
    if not runnable:
        least = " nor ".join(of_machine[-1].name.upper() for of_machine in (X86, ARM))
        raise SetupError(f"the processor reports neither {least}, of which the native engine needs one")
    return runnable


def _by_speed(flags: Set[str]) -> list[Level]:
    """Intel's vectors multiply bf16 at half the speed of floats, AMD's at twice (benchmarks/README.md, "With AMX")."""
    levels = list(LEVELS)
    if not is_of_amd(flags):
        bf16, vnni = levels.index(_AVX512_BF16), levels.index(_AVX512_VNNI)
        levels[bf16], levels[vnni] = levels[vnni], levels[bf16]
    return levels
