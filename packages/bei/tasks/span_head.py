"""The heads of GLiNER and GLiNER2: states of tokens in, logits of spans of words for each label out (arXiv:2311.08526,
§2; the library `gliner`: SpanMarkerV0, SpanMarker, Scorer; arXiv:2507.18546, §2)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from bei.checkpoint.gliner_head import Gliner
from bei.tasks.linear import Linear, Two, linear, relu, two
from bei.tasks.lstm import Lstm
from bei.tasks.schema_labels import Counted
from bei.tokenizer.words import WordWindow, WordWindows

_WORDS_AT_ONCE = 4096  # of the windows that take a step of an RNN together, each as long as the longest
_ROWS_AT_ONCE = 1024  # of the widest layer of a head


class Spans(NamedTuple):
    """starts, ends: int[n], both inclusive, in words; labels: int[n]; logits: float32[n]"""

    starts: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


class Scorer(Protocol):
    """The last part of a head."""

    def spans(self, words: np.ndarray, labels: np.ndarray, least: float, *, each: bool) -> Iterator[Spans]:
        """words: float32[words, D], labels: float32[labels, D] → the spans whose logit is above `least`, in portions:
        with `each` for every label, otherwise for the label of the greatest one."""
        ...


class SpanHead:
    """The head of a checkpoint, with its weights in memory. Safe from several threads. `by_label`: the library decides
    on the spans of each label alone."""

    def __init__(self, gliner: Gliner):
        self._pooling = gliner.pooling
        weights = {name: np.asarray(tensor, np.float32) for name, tensor in gliner.tensors.items()}
        self._rnn = [_lstm(weights, layer) for layer in range(gliner.rnn_layers)]
        self._scorer: Scorer = _Words(weights) if gliner.span_mode == "token_level" else _Markers(weights, gliner)
        self.by_label = gliner.version == 2

    def spans(
        self, windows: WordWindows, states: Sequence[np.ndarray], least: float, *, each: bool
    ) -> Iterator[Iterator[Spans]]:
        """The spans of each window, as a Scorer gives them; its tokens have `states`, float32[tokens, D]."""
        least = float(np.nextafter(least, -np.inf)) if self.by_label else least  # in GLiNER2 a score may equal it
        for portion in _portions(windows.windows):
            words = [self._words(states[i], windows.windows[i].bounds) for i in portion]
            for layer in self._rnn:
                words = layer(words)
            for i, of in zip(portion, words, strict=True):
                yield self._scorer.spans(of, states[i][windows.labels], least, each=each)

    def _words(self, states: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """float32[words, D]"""
        starts, ends = bounds[:-1], bounds[1:]
        if not len(starts):
            return states[:0]
        found: np.ndarray
        match self._pooling:
            case "first":
                found = states[starts]
            case "last":
                found = states[ends - 1]
            case "mean":
                found = np.add.reduceat(states[: ends[-1]], starts) / (ends - starts)[:, None].astype(np.float32)
            case "max":
                found = np.maximum.reduceat(states[: ends[-1]], starts)
        return found


class _Markers:
    """`markerV0`, which GLiNER2 has, too, and `marker`, whose last layer is one matrix. A span is made of two
    projections, of its first and of its last word; its logit is the product with the projection of a label. The last
    matrix of a span and that of a label make one product, which is far smaller than a span."""

    def __init__(self, weights: Mapping[str, np.ndarray], gliner: Gliner):
        place = "span_rep_layer.span_rep_layer" if gliner.version == 1 else "span_rep.span_rep_layer"
        self._width = gliner.max_width
        self._start, self._end = (two(weights, f"{place}.project_{end}") for end in ("start", "end"))
        self._label = two(weights, "prompt_rep_layer") if gliner.version == 1 else Counted(weights, gliner.span_mode)
        out = f"{place}.out_project"
        joined = linear(weights, out) if gliner.span_mode == "marker" else two(weights, out)
        self._joined: Linear | None = joined.first if isinstance(joined, Two) else None
        self._last = joined.second if isinstance(joined, Two) else joined

    def spans(self, words: np.ndarray, labels: np.ndarray, least: float, *, each: bool) -> Iterator[Spans]:
        by_label = self._label(labels).T
        if not by_label.size:  # a schema that finds nothing
            return
        last = Linear(self._last.weight @ by_label, self._last.bias @ by_label)
        joined = last if self._joined is None else self._joined
        starts, ends = np.split(joined.weight, 2)
        starts, ends = relu(self._start(words)) @ starts + joined.bias, relu(self._end(words)) @ ends
        for first in range(0, len(words), _ROWS_AT_ONCE // self._width or 1):
            begin = np.arange(first, min(first + (_ROWS_AT_ONCE // self._width or 1), len(words)))
            begin, length = (of.ravel() for of in np.meshgrid(begin, np.arange(self._width), indexing="ij"))
            inside = begin + length < len(words)
            begin, end = begin[inside], (begin + length)[inside]
            logits = starts[begin] + ends[end]
            yield _above(begin, end, logits if self._joined is None else last(relu(logits)), least, each=each)


class _Words:
    """`token_level`: for each word and label the logits of the first word of an entity, of its last, and of one inside.
    The logit of a span is the least of its words'."""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        self._word, self._label = (linear(weights, f"scorer.proj_{of}") for of in ("token", "label"))
        self._out = two(weights, "scorer.out_mlp")

    def spans(self, words: np.ndarray, labels: np.ndarray, least: float, *, each: bool) -> Iterator[Spans]:
        first, last, inside = self._of_words(words, labels)
        for start in np.flatnonzero((first > least).any(1)).tolist():
            whole = np.minimum.accumulate(inside[start:])
            broken = ~(whole >= least).any(1)
            stop = int(np.argmax(broken)) if broken.any() else len(whole)
            whole, ends = whole[:stop], np.minimum(last[start : start + stop], first[start])
            logits = np.where((whole >= least) & (ends > least), np.minimum(whole, ends), -np.inf)
            begin = np.full(stop, start)
            yield _above(begin, begin + np.arange(stop), logits, -np.inf, each=each)

    def _of_words(self, words: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """float32[3, words, labels]"""
        word, label = np.split(self._word(words), 2, 1), np.split(self._label(labels), 2, 1)
        weights, out = np.split(self._out.first.weight, 3), self._out
        by_word, by_label = word[0] @ weights[0] + out.first.bias, label[0] @ weights[1]
        found = np.empty((len(words), len(labels), 3), np.float32)
        some = max(1, _ROWS_AT_ONCE // len(labels))
        for at in (slice(i, i + some) for i in range(0, len(words), some)):
            inner = (word[1][at, None] * label[1]) @ weights[2] + by_word[at, None] + by_label
            found[at] = out.second(relu(inner))
        return found.transpose(2, 0, 1)


def _above(starts: np.ndarray, ends: np.ndarray, logits: np.ndarray, least: float, *, each: bool) -> Spans:
    """logits: float32[spans, labels]"""
    labels = np.arange(logits.shape[1]) if each else logits.argmax(1)[:, None]
    logits = logits if each else np.take_along_axis(logits, labels, 1)
    spans, columns = np.nonzero(logits > least)
    chosen = labels[columns] if each else labels[spans, 0]
    return Spans(starts[spans], ends[spans], chosen, logits[spans, columns])


def _portions(windows: Sequence[WordWindow]) -> Iterator[range]:
    start = longest = 0
    for i, window in enumerate(windows):
        longest = max(longest, len(window.starts))
        if i > start and longest * (i + 1 - start) > _WORDS_AT_ONCE:
            yield range(start, i)
            start, longest = i, len(window.starts)
    yield range(start, len(windows))


def _lstm(weights: Mapping[str, np.ndarray], layer: int) -> Lstm:
    def both(kind: str) -> np.ndarray:
        return np.stack([weights[f"rnn.lstm.{kind}_l{layer}{way}"] for way in ("", "_reverse")])

    inputs, states = (np.ascontiguousarray(both(kind).transpose(0, 2, 1)) for kind in ("weight_ih", "weight_hh"))
    return Lstm(inputs, states, both("bias_ih") + both("bias_hh"))
