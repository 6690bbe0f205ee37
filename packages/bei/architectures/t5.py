"""The encoders of T5 (arXiv:1910.10683), mT5 (arXiv:2010.11934) and UMT5 (arXiv:2304.09151): pre-norm layers with RMS
norm, and a relative bias on unscaled attention scores. Layers share the bias; in UMT5 each has its own."""

from collections.abc import Mapping

from bei.architectures.config import Config, activation, read, refuse_others
from bei.architectures.family import Family, HeadKind
from bei.architectures.positions import RelativeBias
from bei.architectures.spec import PRE, Activation, EncoderSpec, Layer, Norm
from bei.architectures.tensor_names import Part, TensorNames, affine, layer_tensors
from bei.architectures.usual_heads import HeadMaker, one_dense
from bei.errors import SetupError, short

_TRAINED = 512  # tokens, of every T5
_SELF, _MLP = "layer.0.SelfAttention", "layer.1.DenseReluDense"


def _spec(config: Config, own_biases: bool, feed_forward: str) -> EncoderSpec:
    """T5's states exceed float16's range (transformers keeps its last matrix in float32)."""
    if config.get("is_decoder"):
        raise SetupError("config.json: is_decoder is set; T5's decoder is not an encoder")
    hidden, heads = read(config, "d_model"), read(config, "num_heads")
    act, gated = _activation(config, feed_forward)
    return EncoderSpec(
        vocab_size=read(config, "vocab_size"),
        hidden_size=hidden,
        embedding_size=hidden,
        heads=heads,
        kv_heads=heads,
        head_size=config.get("d_kv", 64),
        attention_scale=1.0,
        intermediate_size=read(config, "d_ff"),
        activation=act,
        gated=gated,
        norm=Norm("rms", config.get("layer_norm_epsilon", 1e-6)),
        layers=(Layer(PRE),) * read(config, "num_layers"),
        max_tokens=config.get("n_positions") or _TRAINED,
        relative_bias=RelativeBias(
            config.get("relative_attention_num_buckets", 32),
            config.get("relative_attention_max_distance", 128),
            own_biases,
        ),
        biases=(),
        embedding_norm=False,
        final_norm=True,
        wide_range=True,
    )


def _activation(config: Config, default: str) -> tuple[Activation, bool]:
    """`feed_forward_proj` names the activation, after `gated-` if there is a gate; T5's gated GELU is its approximation
    by tanh. Raises SetupError if `dense_act_fn` or `is_gated_act` says otherwise."""
    stated = config.get("feed_forward_proj", default)
    kind, _, name = stated.rpartition("-")
    if kind not in ("", "gated"):
        raise SetupError(f"config.json: feed_forward_proj {short(stated)} is not supported")
    name = "gelu_new" if stated == "gated-gelu" else name
    refuse_others(config, {"dense_act_fn": name, "is_gated_act": bool(kind)})
    return activation(name), bool(kind)


def _t5(config: Config) -> EncoderSpec:
    return _spec(config, own_biases=False, feed_forward="relu")


def _mt5(config: Config) -> EncoderSpec:
    return _spec(config, own_biases=False, feed_forward="gated-gelu")


def _umt5(config: Config) -> EncoderSpec:
    return _spec(config, own_biases=True, feed_forward="gated-gelu")


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    layers = layer_tensors(
        spec,
        "encoder.block",
        qkv=(f"{_SELF}.q", f"{_SELF}.k", f"{_SELF}.v"),
        out=(f"{_SELF}.o",),
        up=(f"{_MLP}.wi_0", f"{_MLP}.wi_1") if spec.gated else (f"{_MLP}.wi",),
        down=(f"{_MLP}.wo",),
        attention_in=("layer.0.layer_norm",),
        ffn_in=("layer.1.layer_norm",),
    )
    names: dict[str, tuple[Part, ...]] = {"embeddings.token": ("shared.weight",)}
    for i, ours in enumerate(spec.bias_names):
        names[ours] = (f"encoder.block.{i}.{_SELF}.relative_attention_bias.weight",)
    return {**names, **layers, **affine("final_norm", "encoder.final_layer_norm", bias=False)}


_PREFIXES = ("", "transformer.")
_IGNORED = (r"decoder\.", r"lm_head\.", r"encoder\.embed_tokens\.", r"classif", r"qa_outputs\.")
_HEADS: Mapping[HeadKind, HeadMaker] = {"TokenClassification": one_dense}

T5 = Family(_t5, _tensors, _PREFIXES, _IGNORED, _HEADS)
MT5 = Family(_mt5, _tensors, _PREFIXES, _IGNORED, _HEADS)
UMT5 = Family(_umt5, _tensors, _PREFIXES, _IGNORED, _HEADS)
