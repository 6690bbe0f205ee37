"""The head of a GLiNER, in either version: how it reads labels and words, and its tensors, by the libraries' names."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from bei.checkpoint.tensors import Tensor, Tensors
from bei.checkpoint.weights import WEIGHTS, stored_tensors
from bei.errors import SetupError, short

WordPooling = Literal["first", "last", "mean", "max"]
Markers = Literal["marker", "markerV0", "token_level"]
Counting = Literal["count_lstm", "count_lstm_v2"]

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Gliner:
    """`span_mode` is the kind of the head: it scores spans of at most `max_width` words, or with `token_level` words.
    A text is read in windows of `max_words`. The state of a word is that of its tokens by `pooling`. Before the labels
    stand the words `before`, before each of them the token `mark`, and after them the words `after`; a label's state is
    its mark's, or with `first_of_label` that of the token after it. `added` are the special tokens of a tokenizer; the
    library adds them where they are missing. `mark_id` is the mark's, if the checkpoint states it. `tensors` are the
    head's, under the library's names. `version` is that of GLiNER."""

    version: Literal[1, 2]
    span_mode: Markers | Counting
    max_width: int
    max_words: int
    pooling: WordPooling
    before: tuple[str, ...]
    mark: str
    after: tuple[str, ...]
    added: tuple[str, ...]
    tensors: Tensors
    first_of_label: bool = False
    rnn_layers: int = 0
    mark_id: int | None = None


def stored(folder: Path) -> Mapping[str, Tensor]:
    """Empty without weights, which a look at the JSON files alone does not need."""
    files = (folder / f"{name}{ending}" for name in WEIGHTS for ending in ("", ".index.json"))
    return stored_tensors(folder) if any(file.exists() for file in files) else {}


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def layers(name: str, sizes: tuple[int, ...], step: int) -> Shapes:
    """Linear layers from each size to the next. Every `step`-th module of a sequence is one."""
    found: Shapes = {}
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        found |= linear(f"{name}.{step * i}", outputs, inputs)
    return found


def marker(place: str, width: int) -> Shapes:
    """Of `markerV0`."""
    ends = (layers(f"{place}.project_{end}", (width, 4 * width, width), 3) for end in ("start", "end"))
    return {**next(ends), **next(ends), **layers(f"{place}.out_project", (2 * width, 4 * width, width), 3)}


def head_tensors(own: Mapping[str, Tensor], shapes: Shapes, folder: Path, config: str) -> Tensors:
    """Raises SetupError for tensors missing, left over, or of another shape than the file `config` says."""
    missing, left = sorted(shapes.keys() - own.keys()), sorted(own.keys() - shapes.keys())
    for names, what in ((missing, "tensors missing"), (left, f"tensors that {config} does not account for")):
        if names:
            raise SetupError(f"{folder}: {what}: {short(', '.join(names))}")
    for name, shape in shapes.items():
        if own[name].shape != shape:
            raise SetupError(f"{own[name].file}: {name} has shape {own[name].shape}, {config} says {shape}")
        if own[name].dtype not in ("float32", "float16", "bfloat16"):
            raise SetupError(f"{own[name].file}: {name} is {own[name].dtype}; use float32, float16 or bfloat16")
    return Tensors({name: (own[name],) for name in shapes})
