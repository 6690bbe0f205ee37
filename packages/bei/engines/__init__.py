"""Which engine runs here, and why. An engine is imported only when it is tried."""

import importlib
import logging
from pathlib import Path

from bei.checkpoint.load import Checkpoint
from bei.engines.base import Engine
from bei.engines.native.isa import processor_flags
from bei.errors import SetupError
from bei.settings import Settings

log = logging.getLogger("bei")

ENGINES = {
    "native": "bei.engines.native.engine:NativeEngine",
    "torch": "bei.engines.torch.engine:TorchEngine",
    "null": "bei.engines.null:NullEngine",
}
"""The null engine answers nonsense and is never chosen unasked."""
_NVIDIA = Path("/proc/driver/nvidia/version")


def create(settings: Settings, checkpoint: Checkpoint) -> Engine:
    """The engine the settings name, or the first that runs here. Raises SetupError with why each does not."""
    if settings.quantization != "no_quant":
        log.warning("quantization_type %s: no engine here has it yet; serving in 16 bits", settings.quantization)
    refusals = []
    for name in _fastest_first() if settings.engine == "auto" else (settings.engine,):
        try:
            engine = _class(name)(
                checkpoint, precision=settings.precision, threads=settings.threads, cache_dir=settings.cache_dir
            )
        except SetupError as exc:
            log.warning("engine %s does not run here: %s", name, exc)
            refusals.append(f"{name}: {exc}")
            continue
        asked = "as asked" if settings.engine == name else "the fastest that runs here"
        log.info("engine %s: %s; %s on %s (%s)", name, asked, engine.precision, engine.device, engine.reason)
        return engine
    raise SetupError(f"no engine runs here ({'; '.join(refusals)})")


def _fastest_first() -> tuple[str, ...]:
    """What `engine: auto` tries. torch alone uses a GPU, and the matrix tiles that some Intel processors have."""
    return ("torch", "native") if _NVIDIA.exists() or "amx_bf16" in processor_flags() else ("native", "torch")


def _class(name: str) -> type:
    module, _, attribute = ENGINES[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as exc:
        raise SetupError(f"{exc.name} is not installed: pip install 'bei[{name}]'") from None
