"""The differences between TensorRT 10, TensorRT 11 and TensorRT-RTX; the rest of this folder uses one API."""

import importlib
import logging
import time
from functools import cache
from types import ModuleType
from typing import Any

from bei.errors import SetupError, one_line

log = logging.getLogger("bei")

_MODULES = ("tensorrt", "tensorrt_rtx")


class API:
    """One of the modules, and its capabilities."""

    def __init__(self, module: ModuleType) -> None:
        self.trt = module
        self.name = f"{module.__name__} {module.__version__}"
        self.is_rtx = module.__name__ == "tensorrt_rtx"
        self.has_packed_attention = hasattr(module, "AttentionIOForm")
        self.has_lengths = hasattr(module.IAttention, "key_value_lengths")
        self._logger = _logger(module)

    def builder(self) -> Any:
        return self.trt.Builder(self._logger)

    def runtime(self) -> Any:
        return self.trt.Runtime(self._logger)

    def network(self, builder: Any) -> Any:
        """Types come from the tensors: TensorRT 10 has to be asked for what is the only way later."""
        return builder.create_network(1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))

    def attention(self, network: Any, q: Any, k: Any, v: Any, causal: bool) -> Any:
        softmax = self.trt.AttentionNormalizationOp.SOFTMAX
        if hasattr(network, "add_attention_v2"):
            kind = self.trt.CausalMaskKind
            return network.add_attention_v2(q, k, v, softmax, kind.UPPER_LEFT if causal else kind.NONE)
        return network.add_attention(q, k, v, softmax, causal)

    def config(self, builder: Any, target: str | None, timing: bytes) -> Any:
        """`target`: a compute capability ("SM89") for which TensorRT-RTX builds ahead of time; None: this machine's
        GPU."""
        config = builder.create_builder_config()
        config.clear_flag(self.trt.BuilderFlag.TF32)
        config.progress_monitor = _progress(self.trt)
        if target is not None:
            if not self.is_rtx:
                raise SetupError(f"{self.name} builds for this machine's GPU; only TensorRT-RTX builds for {target}")
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(self.trt.ComputeCapability, target), 0)
        if not self.is_rtx:
            config.set_timing_cache(config.create_timing_cache(timing), ignore_mismatch=False)
        return config

    def timing(self, config: Any) -> bytes:
        """The builder's measurements of this GPU's kernels."""
        return b"" if self.is_rtx else bytes(config.get_timing_cache().serialize())


@cache
def load() -> API:
    """TensorRT, which tensorrt_llm brings, or else TensorRT-RTX. There is one per process, as it has one logger. Raises
    SetupError."""
    reasons = []
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            reasons.append(f"{name} is not installed")
        except (ImportError, OSError) as exc:
            reasons.append(f"{name}: {one_line(exc)}")
        else:
            if hasattr(module, "IAttention"):
                return API(module)
            reasons.append(f"{name} {module.__version__} has no attention layer; upgrade it")
    raise SetupError(f"{'; '.join(reasons)}; pip install tensorrt-cu13, or tensorrt-rtx-cu13")


def _logger(trt: ModuleType) -> Any:
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.DEBUG,
        trt.ILogger.VERBOSE: logging.NOTSET,
    }

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # which module is here is known at run time
        """Into ours."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.log(levels.get(severity, logging.DEBUG), "tensorrt: %s", message)

    return Logger()


def _progress(trt: ModuleType) -> Any:
    """Logs the progress of a build every few seconds."""
    every = 5.0

    class Progress(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # as above
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._said = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if now - self._said > every:
                self._said = now
                log.info("building: %s, step %d of %d", phase_name, step + 1, self._steps.get(phase_name, 0))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Progress()
