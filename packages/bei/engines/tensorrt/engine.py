"""tensorrt: NVIDIA GPUs, by a plan that TensorRT builds once from the spec and that the cache keeps."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bei import __version__, files
from bei.architectures.shapes import linear_sizes
from bei.checkpoint.load import Checkpoint
from bei.engines import plan
from bei.engines.base import DEFAULTS, Batch, EngineFacts, EngineOptions
from bei.engines.calibration import calibration_batches
from bei.engines.compute import Compute
from bei.engines.quantization import gpu_compute, gpu_dtype
from bei.engines.tensorrt import api as tensorrt
from bei.engines.tensorrt.api import API
from bei.engines.tensorrt.attention import scored_heads
from bei.engines.tensorrt.build import Recipe, build
from bei.engines.tensorrt.execution import GPU, gpu, open_plan
from bei.engines.tensorrt.network import check
from bei.engines.tensorrt.profiles import profiles
from bei.engines.tensorrt.runner import Runner
from bei.engines.torch.peaks import input_peaks
from bei.errors import SetupError, one_line
from bei.settings.gpus import Capability

log = logging.getLogger("bei")


class TensorRTEngine:
    """Two batches at once, each on a stream of its own: one is copied and unpacked while the other computes."""

    fault = None

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions = DEFAULTS):
        api = tensorrt.load()
        here = gpu()
        capability = here.capability
        recipe = recipe_of(checkpoint, options, _choose(checkpoint, options, capability))
        self.facts = EngineFacts(
            name="tensorrt",
            device=here.name,
            precision=recipe.compute.dtype,
            quantization=recipe.compute.quantization,
            reason=f"{api.name}, compute capability {capability[0]}.{capability[1]}",
            streams=2,
            token_budget=max(profile.tokens for profile in recipe.profiles),
        )
        with files.cache(options.cache_dir, "tensorrt") as folder:
            content = _plan(api, checkpoint, recipe, options, here, folder)
        self._runner = Runner(checkpoint.spec, recipe.profiles, open_plan(api, content, self.facts.streams))
        self._try()

    def run(self, batch: Batch) -> np.ndarray:
        return self._runner.run(batch)

    def _try(self) -> None:
        """Run one token: a plan may load although its kernels do not run."""
        try:
            self.run(Batch.pack([[0]]))
        except RuntimeError as exc:
            raise SetupError(f"the plan does not run on {self.facts.device}: {one_line(exc, 300)}") from None


def _choose(checkpoint: Checkpoint, options: EngineOptions, capability: Capability) -> Compute:
    """Raises SetupError for what the GPU or TensorRT does not have."""
    if options.precision == "int8":
        raise SetupError("int8 needs the native engine; on a GPU set quantization_type fp8")
    if options.precision == "int4":
        raise SetupError("int4 needs the native engine; on a GPU set quantization_type fp4")
    dtype = gpu_dtype(checkpoint, capability, options.precision)
    return gpu_compute(dtype, options.quantization, checkpoint, capability)


def recipe_of(checkpoint: Checkpoint, options: EngineOptions, compute: Compute, target: str | None = None) -> Recipe:
    """The recipe for these options. Raises SetupError for a spec that TensorRT does not support."""
    spec, longest = checkpoint.spec, checkpoint.max_tokens
    check(spec, longest)
    sizes = (size for of in spec.layers for part in linear_sizes(spec, of).values() for size in part)
    widest = max(spec.token_size, *sizes)
    late = checkpoint.late_interaction
    return Recipe(
        spec,
        compute,
        profiles(longest, options.max_num_tokens, options.max_batch_size, widest, scored_heads(spec)),
        all_seen=late is None or late.attend or not late.expansion,
        target=target,
    )


def _plan(
    api: API,
    checkpoint: Checkpoint,
    recipe: Recipe,
    options: EngineOptions,
    here: GPU,
    folder: Path,
) -> np.ndarray:
    """The bytes of the plan, mapped from the cache; built into it first if they are missing."""
    weights, made_by = checkpoint.tensors.fingerprint(folder), plan.source_hash(Path(__file__).parents[1])
    calibration = options.calibration if recipe.compute.quantization != "none" else None
    identity = (weights, recipe, calibration, here, api.name, made_by, __version__)
    key = hashlib.sha256(repr(identity).encode()).hexdigest()
    timing = folder / f"{hashlib.sha256(repr((here, api.name)).encode()).hexdigest()[:32]}.timing"

    def make() -> Iterator[plan.Part]:
        log.info("building for %s by %s; this takes minutes, once ...", here.name, api.name)
        peaks = {}
        if calibration is not None:
            batches = calibration_batches(checkpoint, calibration)
            peaks = input_peaks(checkpoint, recipe.compute.products, batches)
        with files.opened(timing) as kept:
            known = kept.read() if kept else b""
        content, learned = build(api, checkpoint, recipe, peaks, known)
        with files.replacing(timing) as unfinished:
            unfinished.write_bytes(learned)
        yield plan.ready("plan", content)

    return plan.cached(folder / f"{key[:32]}.plan", key, make)["plan"]
