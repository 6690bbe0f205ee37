"""native: processors of x86-64 and ARM64, by fused kernels over packed tokens (cpp/). It needs no torch. It needs a
C++ compiler once, unless a wheel or an image brings the libraries."""

import ctypes
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from bei import __version__, files
from bei.architectures.shapes import products_per_token
from bei.architectures.spec import EncoderSpec
from bei.checkpoint.load import Checkpoint
from bei.engines import plan
from bei.engines.base import DEFAULTS, Batch, EngineFacts, EngineOptions
from bei.engines.compute import Compute
from bei.engines.cpus import available_cpus
from bei.engines.native import library
from bei.engines.native.calibrate import input_peaks
from bei.engines.native.encoder import Encoder
from bei.engines.native.levels import Level, levels
from bei.engines.native.pack import PEAKED, Packer, compute_of
from bei.engines.plan import Part
from bei.engines.prefixes import can_share
from bei.errors import SetupError

log = logging.getLogger("bei")

_LEAST_TOKENS = 192  # of a batch of long texts
_EXPERT_ROWS = 48  # for which the matrices of an expert are read
_BATCH_PRODUCTS = 15_000_000_000  # multiplications, about 0.15 s of one thread in bf16


class NativeEngine:
    """Each thread runs a batch of its own, so batches are small. Idle threads help with long batches."""

    fault = None

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions = DEFAULTS, *, isa: Level | None = None):
        """`isa` is the fastest level of the processor that can be compiled, unless a test sets another."""
        _check_precision(options)
        check(checkpoint.spec)
        usable = [isa] if isa else levels()
        threads = options.threads or available_cpus()
        with files.cache(options.cache_dir, "native") as folder:
            isa, loaded = library.load_fastest(usable, folder)
            compute, reason = _choose(isa, checkpoint.spec, options)
            arrays = _plan(checkpoint, compute, isa, loaded, folder, threads)
        self.facts = EngineFacts(
            name="native",
            device=f"cpu x {threads}, {isa.name}",
            precision=compute.dtype,
            quantization=compute.quantization,
            reason=reason,
            streams=threads,
            token_budget=_token_budget(checkpoint.spec, isa, library.layouts(loaded)[compute.format].block_rows),
            shares_prefixes=can_share(checkpoint.spec),
            has_brief_slot=True,
            processors=1,
        )
        self._encoder = Encoder(loaded, checkpoint.spec, compute, arrays, threads, options.allowance)
        self.sharing = self._encoder.sharing

    def run(self, batch: Batch) -> np.ndarray:
        return self._encoder.run(batch)


def _check_precision(options: EngineOptions) -> None:
    """Raises SetupError for a precision that no processor has."""
    if options.precision == "fp16":
        raise SetupError("fp16 needs a GPU; on a CPU use bf16, fp32, int8 or int4")


def check(spec: EncoderSpec) -> None:
    """Raises SetupError for a spec without layers. The kernels have all other words."""
    if not spec.layers:
        raise SetupError("the model has no layers")


def _token_budget(spec: EncoderSpec, isa: Level, block_rows: int) -> int:
    """A block of rows is as fast as many. Small models get more tokens, for fewer calls."""
    products = 4 * _BATCH_PRODUCTS if isa.has_tiles else _BATCH_PRODUCTS
    shares = [-(-layer.experts.count // layer.experts.chosen) for layer in spec.layers if layer.experts]
    least = max([_LEAST_TOKENS, block_rows, *(_EXPERT_ROWS * share for share in shares)])
    return min(1024, max(least, products // products_per_token(spec)))


def _choose(isa: Level, spec: EncoderSpec, options: EngineOptions) -> tuple[Compute, str]:
    """How it computes, and the reason for it.

    bf16 is the fastest of those that keep quality. Without bf16 instructions its weights still take half the memory
    traffic of fp32.
    """
    if options.precision != "auto":
        return compute_of(spec, options.precision), "as asked"
    if isa.has_bf16:
        return Compute("bf16"), "the processor multiplies bf16 natively"
    return Compute("bf16"), "weights of 16 bits; the processor computes in fp32"


def make_plans(checkpoint: Checkpoint, options: EngineOptions, machines: Sequence[Level]) -> None:
    """Makes the plans that machines of these levels look for, unless they are there. Peaks of int8 are seen on this
    machine. Raises SetupError."""
    _check_precision(options)
    check(checkpoint.spec)
    with files.cache(options.cache_dir, "native") as folder:
        _, loaded = library.load_fastest(levels(), folder)
        for isa in machines:
            compute, _ = _choose(isa, checkpoint.spec, options)
            _plan(checkpoint, compute, isa, loaded, folder, options.threads or available_cpus())
        plan.settle()


def _plan(
    checkpoint: Checkpoint, compute: Compute, isa: Level, loaded: ctypes.CDLL, folder: Path, threads: int
) -> Mapping[str, np.ndarray]:
    """The packed weights, mapped from the cache; packed into it first if they are missing."""
    weights, made_by = checkpoint.tensors.fingerprint(folder), plan.source_hash(Path(__file__).parent, *library.COMPILE)
    identity = (weights, checkpoint.spec, compute, isa, made_by, __version__)
    key = hashlib.sha256(repr(identity).encode()).hexdigest()

    def make() -> Iterator[Part]:
        log.info("packing the weights in %s for %s ...", compute.format, isa.name)
        peaks = input_peaks(checkpoint, loaded, folder, threads) if compute.format in PEAKED else {}
        return Packer(loaded, library.layouts(loaded, isa)).parts(checkpoint, compute, peaks)

    return plan.cached(folder / f"{key[:32]}.plan", key, make)
