"""Words of the spec (spec.py) about the positions of tokens: rotations, biases of attention, and growing queries."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DynamicScaling:
    """A base that grows with the length of sequences beyond `trained` tokens (transformers, modeling_rope_utils.py)."""

    base: float
    factor: float
    trained: int


@dataclass(frozen=True)
class LongFrequencies:
    """The frequencies for sequences of more than `trained` tokens (LongRoPE, arXiv:2402.13753)."""

    frequencies: tuple[float, ...]
    trained: int


@dataclass(frozen=True)
class Rotary:
    """Rotation of the i-th pair of a head, (i, i + pairs), by position * frequencies[i] radians (arXiv:2104.09864). The
    numbers of a head after the pairs are unchanged. `scale` multiplies the rotated numbers."""

    frequencies: tuple[float, ...]
    scale: float = 1.0
    dynamic: DynamicScaling | LongFrequencies | None = None

    @property
    def size(self) -> int:
        """How many of a head's numbers are rotated."""
        return 2 * len(self.frequencies)


@dataclass(frozen=True)
class RelativeBias:
    """A learned bias per head and bucket of distances, added to scores (T5, arXiv:1910.10683, §2.1; MPNet). With
    `per_layer` each layer has its own (UMT5; transformers, UMT5Attention)."""

    buckets: int
    max_distance: int
    per_layer: bool = False


@dataclass(frozen=True)
class Alibi:
    """A bias per head that decreases with distance: -slope * |i - j| (arXiv:2108.12409; bidirectional in JinaBERT)."""


@dataclass(frozen=True)
class QueryGrowth:
    """Queries beyond `trained` tokens are multiplied by 1 + strength * ln(1 + ⌊position / trained⌋) (Llama 4;
    transformers, get_llama_4_attn_scale)."""

    strength: float
    trained: int
