"""The contract: an engine turns a packed batch into rows. Nothing above this folder knows a device.

A batch is tokens laid end to end with no padding; sequence b owns tokens cu_seqlens[b] to cu_seqlens[b + 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from bei.architectures.spec import Pooling, PoolingMode
from bei.batching import RowKind
from bei.checkpoint.load import Checkpoint
from bei.engines.allowance import Allowance
from bei.engines.compute import Dtype, Integers, Quantization
from bei.settings.block import QuantizationType


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """T tokens of B sequences.

    input_ids, token_types: int32[T]; cu_seqlens: int32[B + 1]; prompt_tokens: int32[B], the leading tokens of each
    sequence that a spec with `include_prompt` false leaves out of its pooling; attended: int32[B], the leading tokens
    that are attended to (the others only attend: ColBERT's query expansion). `row_kind`: return one pooled row per
    sequence, or the states of tokens after the spec's `token_head`; marked: int32[M], the tokens whose states are
    returned, in their order; None for all.
    """

    input_ids: np.ndarray
    token_types: np.ndarray
    cu_seqlens: np.ndarray
    prompt_tokens: np.ndarray
    attended: np.ndarray
    row_kind: RowKind = "pooled"
    marked: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.cu_seqlens)

    @property
    def first_rows(self) -> np.ndarray:
        """int[B]: of rows of tokens, the index of each sequence's first one."""
        starts = self.cu_seqlens[:-1]
        return starts if self.marked is None else np.searchsorted(self.marked, starts)

    @classmethod
    def pack(
        cls,
        ids: Sequence[Sequence[int] | np.ndarray],
        token_types: Sequence[Sequence[int] | np.ndarray | None] | None = None,
        prompt_tokens: Sequence[int] | None = None,
        attended: Sequence[int | None] | None = None,
        row_kind: RowKind = "pooled",
        marked: Sequence[np.ndarray | None] | None = None,
    ) -> "Batch":
        """Lay sequences end to end. Defaults: types are 0, prompts have no tokens, all tokens are attended to and
        marked."""
        cu_seqlens = np.zeros(len(ids) + 1, np.int32)
        np.cumsum([len(s) for s in ids], out=cu_seqlens[1:])
        input_ids = np.concatenate([np.asarray(s, np.int32) for s in ids])
        types = np.zeros(len(input_ids), np.int32)
        for start, of in zip(cu_seqlens, token_types or (), strict=False):
            if of is not None:
                types[start : start + len(of)] = of
        prompts = np.zeros(len(ids), np.int32) if prompt_tokens is None else np.asarray(prompt_tokens, np.int32)
        seen = np.diff(cu_seqlens)
        for b, count in enumerate(attended or ()):
            if count is not None:
                seen[b] = count
        return cls(
            input_ids=input_ids,
            token_types=types,
            cu_seqlens=cu_seqlens,
            prompt_tokens=prompts,
            attended=seen,
            row_kind=row_kind,
            marked=_marked(cu_seqlens, marked or ()),
        )


def _marked(cu_seqlens: np.ndarray, marked: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The marked tokens of each sequence as those of the batch."""
    if all(of is None for of in marked):
        return None
    places = zip(cu_seqlens[:-1], np.diff(cu_seqlens), marked, strict=True)
    found = [start + (np.arange(length) if of is None else of) for start, length, of in places]
    return np.concatenate(found).astype(np.int32)


@dataclass(frozen=True)
class Calibration:
    """The texts whose activations set scales: `quantization_config` of the trt_llm block."""

    dataset: str = "abisee/cnn_dailymail"
    texts: int = 1024
    tokens: int = 1536


@dataclass(frozen=True)
class EngineOptions:
    """How an engine should run. `max_num_tokens` and `max_batch_size` bound its batches; a sequence longer than the
    first runs alone. `precision` and `quantization` are what the settings ask for; an engine makes its `Compute` of
    them. `quantization` is BEI's quantization_type, for engines that support it. `allowance` bounds `threads` while it
    runs, for engines whose batches have helpers."""

    precision: Dtype | Integers | Literal["auto"] = "auto"
    quantization: QuantizationType = QuantizationType.NO_QUANT
    calibration: Calibration = Calibration()
    threads: int | None = None
    cache_dir: Path = Path("~/.cache/bei")
    max_num_tokens: int = 16384
    max_batch_size: int = 256
    allowance: Allowance | None = None


DEFAULTS = EngineOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """Properties of an engine, constant once it is made, for the code that plans its batches, in any process.

    `streams` batches may run at once. `has_brief_slot`: one more, of a few tokens, may run beside them and need not
    wait for their end. `shares_prefixes`: the prefix that sequences of a batch share is computed once. `token_budget`
    is the size of batch, in tokens, beyond which this engine gains nothing; the smaller of it and `max_num_tokens`
    cuts batches. `processors` is how many of the server's a running batch occupies: 0 on a device of its own, and for
    batches that take no time. `precision` and `quantization` are those of the engine's `Compute`. `reason` says why
    this device and precision, for people. `devices` names those of its replicas as `--devices` does; empty for an
    engine without replicas. `is_instant`: a brief batch takes less time than to wake a thread, so whoever submits it
    runs it.
    """

    name: str
    device: str
    precision: Dtype
    reason: str
    streams: int
    token_budget: int
    quantization: Quantization = "none"
    shares_prefixes: bool = False
    has_brief_slot: bool = False
    processors: int = 0
    devices: str = ""
    is_instant: bool = False

    @property
    def computes_in(self) -> str:
        """The precision in users' words: the quantization, or without one the dtype."""
        return self.precision if self.quantization == "none" else self.quantization


class Engine(Protocol):
    """`fault` says why no batch can run now, where that is so. `run` is called from at most as many threads at a time
    as the facts allow batches."""

    facts: EngineFacts
    fault: str | None

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions):
        """Upload the weights, or build a plan into the cache once. Raises SetupError if this engine cannot run the
        checkpoint on this machine."""
        ...

    def run(self, batch: Batch) -> np.ndarray:
        """float32[B, spec.row_size], or with `row_kind="tokens"` float32[T or M, spec.token_size], in the batch's
        order."""
        ...


_PICKED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
    "max": lambda x: x.max(0),
}
_WEIGHTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sum": lambda pooled, steps: pooled,
    "mean": lambda pooled, steps: pooled / pooled.sum(-1, keepdims=True),
    "mean_sqrt_len": lambda pooled, steps: pooled / np.sqrt(pooled.sum(-1, keepdims=True)),
    "weighted_mean": lambda pooled, steps: (w := pooled * steps) / w.sum(-1, keepdims=True),
}


def token_weights(mode: str, pooled: np.ndarray) -> np.ndarray:
    """The weight of each token in a mode that is a weighted sum. pooled: bool[..., S], the tokens that are pooled, →
    float32[..., S].

    Formulas: sentence-transformers 6, sentence_transformer/modules/pooling.py.
    """
    return _WEIGHTS[mode](pooled, np.arange(1, pooled.shape[-1] + 1)).astype(np.float32)


def pool(states: np.ndarray, batch: Batch, pooling: Pooling) -> np.ndarray:
    """Reduce float32[T, H] token rows to float32[B, H * len(modes)]: the oracle that engines are tested against."""
    rows = []
    for b, (start, end) in enumerate(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)):
        skip = 0 if pooling.include_prompt else min(int(batch.prompt_tokens[b]), int(end - start) - 1)
        x, pooled = states[start:end], np.arange(end - start) >= skip
        rows.append(np.concatenate([_reduced(x, pooled, mode) for mode in pooling.modes]))
    return np.stack(rows).astype(np.float32)


def _reduced(x: np.ndarray, pooled: np.ndarray, mode: PoolingMode) -> np.ndarray:
    return _PICKED[mode](x[pooled]) if mode in _PICKED else token_weights(mode, pooled) @ x
