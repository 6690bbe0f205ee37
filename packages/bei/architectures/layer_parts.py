"""Parts of an EncoderSpec (spec.py) that few families have."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ShortConvolution:
    """A gated convolution in place of a layer's attention (LFM2, arXiv:2511.23404). `qkv` makes the vectors b, c and x
    of each token, and `out` reads c * convolution(b * x): each of their numbers has its own `taps` over the token and
    those before it. If `centered`, half of the taps are of tokens after it."""

    taps: int
    centered: bool = False

    @property
    def first(self) -> int:
        """The distance from a token to the one that the first tap reads."""
        return -(self.taps // 2) if self.centered else 1 - self.taps


@dataclass(frozen=True)
class Bottleneck:
    """A layer that is `size` numbers wide inside (MobileBERT, arXiv:2004.02984, §3.1). `enter` projects the layer's
    input x to y. Queries and keys read another projection of x, `shared`, and values read x itself. Attention and then
    `mlps` MLPs are added to y, which `leave` projects back, to be added to x. Each projection to y and each sum has a
    norm."""

    size: int
    mlps: int


@dataclass(frozen=True)
class Heads:
    """The sizes of a layer's attention, where they differ from those of the spec."""

    kv_heads: int
    size: int


@dataclass(frozen=True)
class LayerInputs:
    """Every layer's own input from the embeddings (Gemma 3n; transformers, EmbeddingGemma2TextPLE): the embeddings are
    multiplied by hidden_size^-0.5, projected to `size` numbers for each layer, and these are normed. At its end a layer
    becomes x + norm(project(activation(gate(x)) * input)), times a learned number."""

    size: int
