"""XLNet (arXiv:1906.08237), as an encoder: Transformer-XL's relative positions, and segments in place of types. Of its
two streams only the one of contents runs outside of training."""

from collections.abc import Mapping

from bei.architectures.config import Config, activation, attention_sizes, read, refuse_others
from bei.architectures.family import Family, HeadKind, TaskHead
from bei.architectures.spec import FIRST, LAST, MEAN, Activation, Dense, Disentangled, EncoderSpec, Layer, Norm
from bei.architectures.tensor_names import Flat, Part, TensorNames, Zeros, affine
from bei.architectures.usual_heads import HeadMaker, one_dense
from bei.errors import SetupError, short

_TRAINED = 512  # tokens; the sinusoids of positions have no limit of their own
_ONLY = {"attn_type": "bi", "bi_data": False, "untie_r": True}
_SUMMARIES = {"last": LAST, "first": FIRST, "mean": MEAN, "cls_index": LAST}


def _spec(config: Config) -> EncoderSpec:
    hidden, heads = read(config, "d_model"), read(config, "n_head")
    refuse_others(config, {**_ONLY, "d_head": hidden // heads})
    clamp = config.get("clamp_len", -1)
    longest = clamp if clamp > 0 else _TRAINED
    return EncoderSpec(
        vocab_size=read(config, "vocab_size"),
        hidden_size=hidden,
        embedding_size=hidden,
        **attention_sizes(hidden, heads),
        intermediate_size=read(config, "d_inner"),
        activation=activation(config.get("ff_activation", "gelu")),
        norm=Norm("layer", config.get("layer_norm_eps", 1e-12), bias=True),
        layers=(Layer(),) * read(config, "n_layer"),
        max_tokens=_TRAINED,
        relative_bias=Disentangled(
            buckets=longest + 1,
            max_distance=longest,
            logarithmic=False,
            content_to_position=True,
            position_to_content=False,
            norm=None,
            own_projections=True,
            sinusoids=True,
            segments=True,
        ),
        biases=("qkv", "up", "down"),
        embedding_norm=False,
    )


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names: dict[str, tuple[Part, ...]] = {"embeddings.token": ("word_embedding.weight",)}
    for i in range(len(spec.layers)):
        ours, layer = f"layers.{i}", f"layer.{i}"
        names |= _attention(ours, f"{layer}.rel_attn")
        names |= affine(f"{ours}.attention_end", f"{layer}.rel_attn.layer_norm")
        names |= affine(f"{ours}.up", f"{layer}.ff.layer_1")
        names |= affine(f"{ours}.down", f"{layer}.ff.layer_2")
        names |= affine(f"{ours}.ffn_end", f"{layer}.ff.layer_norm")
    return names


def _attention(ours: str, theirs: str) -> dict[str, tuple[Part, ...]]:
    """Every matrix is [hidden, heads, size]; the bias of queries for contents is theirs alone."""
    none = Zeros(f"{theirs}.r_w_bias", flat=True)
    return {
        f"{ours}.qkv.weight": tuple(Flat(f"{theirs}.{part}", transposed=True) for part in "qkv"),
        f"{ours}.qkv.bias": (Flat(f"{theirs}.r_w_bias"), none, none),
        f"{ours}.out.weight": (Flat(f"{theirs}.o"),),
        f"{ours}.position_key.weight": (Flat(f"{theirs}.r", transposed=True),),
        f"{ours}.position_key.bias": (none,),
        f"{ours}.position_bias": (Flat(f"{theirs}.r_r_bias"),),
        f"{ours}.segment_bias": (Flat(f"{theirs}.r_s_bias"),),
        f"{ours}.segments": (Flat(f"{theirs}.seg_embed"),),
    }


def _classifier(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    """transformers, XLNetSequenceSummary; without an index of its own, `cls_index` is the last token."""
    kind = config.get("summary_type", "last")
    if kind not in _SUMMARIES:
        raise SetupError(
            f"config.json: summary_type {short(kind)} is not supported; supported: {', '.join(_SUMMARIES)}"
        )
    pooling = _SUMMARIES[kind]
    last = (Dense(spec.hidden_size, outputs, True, "identity"), ("logits_proj",))
    if not config.get("summary_use_proj", True):
        if config.get("summary_activation", "tanh"):
            raise SetupError("config.json: summary_activation without summary_use_proj is not supported")
        return TaskHead(pooling=pooling, layers=(last,))
    summary = Dense(spec.hidden_size, spec.hidden_size, True, _summary_activation(config))
    return TaskHead(pooling=pooling, layers=((summary, ("sequence_summary.summary",)), last))


def _summary_activation(config: Config) -> Activation:
    name = config.get("summary_activation", "tanh")
    return activation(name) if name else "identity"


_HEADS: Mapping[HeadKind, HeadMaker] = {"SequenceClassification": _classifier, "TokenClassification": one_dense}
XLNET = Family(
    _spec,
    _tensors,
    ("transformer.", ""),
    (
        *(r"mask_emb$", r"lm_loss\.", r"sequence_summary\.", r"logits_proj\.", r"classifier\.", r"qa_outputs\."),
        *(r"start_logits\.", r"end_logits\.", r"answer_class\."),
    ),
    _HEADS,
)
