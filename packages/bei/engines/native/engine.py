"""native: x-86-64 processors, by fused kernels over packed tokens (cpp/). Needs a C++ compiler once, and no torch."""

import ctypes
import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bei import __version__
from bei.architectures.spec import Dense, LayerNorm, Log1pRelu, Normalize, Stage
from bei.checkpoint.load import Checkpoint
from bei.engines.base import Batch
from bei.engines.cpus import available_cpus
from bei.engines.native import abi, library, plan
from bei.engines.native.isa import Level, level
from bei.engines.native.pack import linear_names, pack_checkpoint
from bei.errors import EngineFailed, SetupError

log = logging.getLogger("bei")


class NativeEngine:
    """A batch a thread: what waits is cut into as many small batches as there are threads, and threads without one help
    those that have a long one."""

    name = "native"
    token_budget = 1024

    def __init__(
        self, checkpoint: Checkpoint, *, precision: str = "auto", threads: int | None = None, cache_dir: Path
    ):
        isa = level()
        self.streams = threads or available_cpus()
        self.device = f"cpu x {self.streams}, {isa.name}"
        self.precision, self.reason = _choose(isa, precision)
        self._spec = checkpoint.spec
        self._plan = _plan(checkpoint, self.precision, isa, cache_dir.expanduser() / "native")
        self._library = library.load(isa, cache_dir.expanduser() / "native")
        self._model, self._kept = _model(checkpoint, self.precision, self._plan)
        self._encoder = self._library.bei_encoder_create(ctypes.byref(self._model), self.streams)
        if not self._encoder:
            raise SetupError("out of memory")

    def run(self, batch: Batch) -> np.ndarray:
        arrays = [
            np.ascontiguousarray(array, np.int32)
            for array in (batch.input_ids, batch.token_types, batch.cu_seqlens, batch.prompt_tokens, batch.attended)
        ]
        if batch.rows == "tokens":
            run, shape = self._library.bei_encoder_tokens, (len(batch.input_ids), self._spec.token_size)
        else:
            run, shape = self._library.bei_encoder_pooled, (len(batch), self._spec.row_size)
        rows = np.empty(shape, np.float32)
        status = run(self._encoder, abi.Batch(*map(abi.address, arrays), len(batch)), abi.address(rows))
        if status:
            raise EngineFailed(f"native engine: {abi.ERRORS[status]}")
        return rows

    def __del__(self):
        if getattr(self, "_encoder", None):
            self._library.bei_encoder_destroy(self._encoder)


def _choose(isa: Level, precision: str) -> tuple[str, str]:
    """The precision and the reason for it. Raises SetupError for one that processors do not have."""
    if precision == "fp16":
        raise SetupError("fp16 needs a GPU; on a CPU use bf16, fp32 or int8")
    if precision != "auto":
        return precision, "as asked"
    if isa.has_bf16:
        return "bf16", "the processor multiplies bf16 natively"
    return "fp32", "the processor has no bf16 instructions"


def _plan(checkpoint: Checkpoint, precision: str, isa: Level, folder: Path) -> Mapping[str, np.ndarray]:
    """The packed weights, mapped from the cache, or made into it."""
    started = time.monotonic()
    identity = (
        checkpoint.tensors.fingerprint(folder), checkpoint.spec, precision, isa, library.source_hash(), __version__
    )  # fmt: skip
    key = hashlib.sha256(repr(identity).encode()).hexdigest()
    file = folder / f"{key[:32]}.plan"
    arrays = plan.read(file, key)
    found = arrays is not None
    if not found:
        log.info("packing the weights in %s for %s ...", precision, isa.name)
        plan.write(file, key, pack_checkpoint(checkpoint, precision, isa))
        arrays = plan.read(file, key)
    megabytes, seconds = file.stat().st_size / 1e6, time.monotonic() - started
    log.info("plan %s: %.0f MB, %s in %.2f s", file, megabytes, "mapped" if found else "made", seconds)
    return arrays


def _model(checkpoint: Checkpoint, precision: str, arrays: Mapping[str, np.ndarray]) -> tuple[abi.Model, list]:
    """The model as the library reads it, and what must live as long."""
    spec = checkpoint.spec
    precisions = dict(linear_names(spec, precision))

    def linear(name: str, inputs: int, outputs: int, activation: str = "identity") -> abi.Linear:
        parts = (abi.address(arrays.get(f"{name}.{part}")) for part in ("panels", "scales", "sums", "bias"))
        return abi.Linear(*parts, inputs, outputs, abi.PRECISIONS[precisions[name]], abi.ACTIVATIONS[activation])

    def norm(name: str, size: int, eps: float = spec.norm_eps) -> abi.Norm:
        return abi.Norm(abi.address(arrays[f"{name}.weight"]), abi.address(arrays[f"{name}.bias"]), size, eps)

    def layer(name: str) -> abi.Layer:
        hidden, inner = spec.hidden_size, spec.intermediate_size
        return abi.Layer(
            linear(f"{name}.qkv", hidden, 3 * hidden),
            linear(f"{name}.out", hidden, hidden),
            linear(f"{name}.up", hidden, inner, spec.activation),
            linear(f"{name}.down", inner, hidden),
            norm(f"{name}.attention_norm", hidden),
            norm(f"{name}.ffn_norm", hidden),
        )

    def stage(name: str, of: Stage) -> abi.Stage:
        match of:
            case Dense(inputs, outputs, _, activation):
                return abi.Stage(abi.DENSE, linear=linear(name, inputs, outputs, activation))
            case LayerNorm(size, eps):
                return abi.Stage(abi.LAYER_NORM, norm=norm(name, size, eps))
            case Normalize():
                return abi.Stage(abi.NORMALIZE)
            case Log1pRelu():
                return abi.Stage(abi.LOG1P_RELU)

    def stages(part: str) -> ctypes.Array:
        return abi.sequence(abi.Stage, [stage(f"{part}.{i}", of) for i, of in enumerate(getattr(spec, part))])

    project = abi.Linear()
    if spec.embedding_size != spec.hidden_size:
        project = linear("embeddings.project", spec.embedding_size, spec.hidden_size)
    layers = abi.sequence(abi.Layer, [layer(f"layers.{i}") for i in range(spec.layers)])
    token_stages, row_stages = stages("token_head"), stages("head")
    modes = abi.sequence(ctypes.c_int32, [abi.MODES[mode] for mode in spec.pooling.modes])
    tables = ("embeddings.token", "embeddings.position", "embeddings.token_type", "relative_bias")
    model = abi.Model(
        abi.PRECISIONS[precision],
        *(spec.vocab_size, spec.hidden_size, spec.heads, spec.intermediate_size),
        *(spec.max_tokens, spec.token_types, spec.embedding_size),
        *(abi.address(arrays.get(name)) for name in tables),
        norm("embeddings.norm", spec.embedding_size),
        project,
        *(layers, len(layers)),
        *(token_stages, row_stages, len(token_stages), len(row_stages)),
        *(modes, len(modes), spec.pooling.include_prompt),
    )
    return model, [arrays, layers, token_stages, row_stages, modes]
