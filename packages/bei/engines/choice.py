"""Chooses the engine that runs here, and logs the reason. An engine is imported only when it is tried."""

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bei import extras
from bei.checkpoint.load import Checkpoint
from bei.engines.allowance import Allowance
from bei.engines.base import Calibration, Engine, EngineFacts, EngineOptions
from bei.errors import SetupError
from bei.settings import ModelSettings
from bei.settings.block import QuantizationType
from bei.settings.devices import kind_of

if TYPE_CHECKING:
    from bei.engines.native.levels import Level

log = logging.getLogger("bei")

ENGINES = {
    "tensorrt": "bei.engines.tensorrt.engine:TensorRTEngine",
    "native": "bei.engines.native.engine:NativeEngine",
    "torch": "bei.engines.torch.engine:TorchEngine",
    "static": "bei.engines.static:StaticEngine",
    "null": "bei.engines.null:NullEngine",
}
"""The null engine answers nonsense; it is chosen only by its name."""
_NVIDIA = Path("/proc/driver/nvidia/version")


def create(settings: ModelSettings, checkpoint: Checkpoint, allowance: Allowance | None = None) -> Engine:
    """The engine that the settings name, or the first that runs here. Raises SetupError with the reason of each that
    does not run."""
    options = replace(_options(settings), allowance=allowance)
    refusals: dict[str, SetupError] = {}
    for name in _candidates(settings, checkpoint, options):
        try:
            engine = _class(name)(checkpoint, options)
        except SetupError as exc:
            refusals[name] = exc
            continue
        for other, why in refusals.items():
            log.warning("engine %s does not run here: %s", other, why)
        asked, facts = "as asked" if settings.engine == name else "the fastest that runs here", engine.facts
        log.info("engine %s: %s; %s on %s (%s)", name, asked, facts.computes_in, facts.device, facts.reason)
        _warn_of_quantization(options.quantization, facts)
        return engine
    raise SetupError(f"no engine runs here ({'; '.join(f'{name}: {why}' for name, why in refusals.items())})")


def levels_named(names: str) -> Sequence["Level"]:
    """The native engine's levels of processors by their names, with commas between. Raises SetupError."""
    from bei.engines.native import levels  # as an engine, only where it is asked for

    return levels.named(names)


def make_plans(settings: ModelSettings, checkpoint: Checkpoint, machines: Sequence["Level"]) -> None:
    """Makes the native engine's plans for machines of these levels. Raises SetupError."""
    from bei.engines.native import engine

    engine.make_plans(checkpoint, _options(settings), machines)


def _candidates(settings: ModelSettings, checkpoint: Checkpoint, options: EngineOptions) -> tuple[str, ...]:
    """Raises SetupError for an engine that computes layers, if the model has none."""
    if checkpoint.spec.layers:
        return _fastest_first(settings, options) if settings.engine == "auto" else (settings.engine,)
    if settings.engine not in ("auto", "static", "null"):
        raise SetupError(f"engine {settings.engine}: the model is a table of vectors without layers; leave it at auto")
    return (settings.engine if settings.engine == "null" else "static",)


def _options(settings: ModelSettings) -> EngineOptions:
    return EngineOptions(
        precision=settings.precision,
        quantization=settings.quantization,
        calibration=Calibration(settings.calib_dataset, settings.calib_size, settings.calib_max_seq_length),
        threads=settings.threads,
        cache_dir=settings.cache_dir,
        max_num_tokens=settings.max_num_tokens,
        max_batch_size=settings.max_batch_size,
    )


def _warn_of_quantization(asked: QuantizationType, facts: EngineFacts) -> None:
    if asked is QuantizationType.NO_QUANT:
        return
    if facts.quantization != asked.value:
        served = f"engine {facts.name} serves in {facts.computes_in}"
        log.warning("quantization_type %s is not available here: %s", asked, served)
    elif asked.endswith("_kv"):
        log.warning("quantization_type %s: an encoder keeps no cache of keys and values; as %s", asked, asked[:3])


def _fastest_first(settings: ModelSettings, options: EngineOptions) -> tuple[str, ...]:
    """The engines that `engine: auto` tries, in order. If `devices` names a GPU, or a GPU does not support the
    quantization, no CPU replaces it."""
    named = settings.devices and kind_of(settings.devices)
    if named == "cuda" or (_NVIDIA.exists() and not named):
        only_gpus = named or options.quantization is not QuantizationType.NO_QUANT
        return ("tensorrt", "torch") if only_gpus else ("tensorrt", "torch", "native")
    return ("native", "torch")


def import_likely() -> None:
    """Imports the engine that `auto` tries first, unless the machine has a GPU: the engines of GPUs take seconds."""
    if not _NVIDIA.exists():
        _class("native")


def _class(name: str) -> Callable[[Checkpoint, EngineOptions], Engine]:
    module, _, attribute = ENGINES[name].partition(":")
    try:
        found: Callable[[Checkpoint, EngineOptions], Engine] = getattr(importlib.import_module(module), attribute)
        return found
    except ModuleNotFoundError as exc:
        raise SetupError(f"{exc.name} is not installed: {extras.install(name)}") from None
