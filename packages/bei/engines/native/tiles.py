"""Permission to use AMX tiles: Linux gives their 8 KB of registers to a process only when it asks
(Documentation/arch/x86/xstate.rst)."""

import ctypes
import logging
import os
from collections.abc import Set
from functools import cache

from bei.engines.processor import is_of_amd

log = logging.getLogger("bei")

FEATURES = ("amx_tile", "amx_int8", "amx_bf16")
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18  # of x86-64


def usable(flags: Set[str]) -> Set[str]:
    """The processor's flags, without those of tiles where the kernel does not permit them, or one of them is hidden."""
    hidden = [feature for feature in FEATURES if feature not in flags]
    if not hidden:
        return flags if _permitted() else flags - set(FEATURES)
    if len(hidden) < len(FEATURES) or _is_of_a_kind_with_tiles(flags):
        _log_hidden(", ".join(hidden))
    return flags - set(FEATURES)


def _is_of_a_kind_with_tiles(flags: Set[str]) -> bool:
    """Intel's since Sapphire Rapids."""
    return "avx512_fp16" in flags and not is_of_amd(flags)


@cache
def _permitted() -> bool:
    """Whether the kernel permits tiles to this process and its threads. Asks once, and logs a refusal."""
    error = _ask()
    if error:
        log.warning("the kernel permits no AMX tiles (%s): vectors are used", os.strerror(error))
    return not error


def _ask() -> int:
    """The error's number, or 0."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    return ctypes.get_errno() if call(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) else 0


@cache
def _log_hidden(features: str) -> None:
    log.info("the processor is of a kind with AMX tiles, but the hypervisor hides %s: vectors are used", features)
