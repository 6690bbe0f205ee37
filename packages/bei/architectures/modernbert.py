"""ModernBERT (arXiv:2412.13663): pre-norm layers without biases, rotary embeddings, and attention that is global in
every third layer and has a window in the others. ModernBERT-decoder (Ettin, arXiv:2507.11412): the same, causal."""

from dataclasses import replace

from bei.architectures.config import Config, activation, attention_sizes, layer_kinds, read
from bei.architectures.decoder import farthest, is_causal
from bei.architectures.family import Family, NamedHeadLayer, TaskHead
from bei.architectures.rope import rotary
from bei.architectures.spec import FIRST, LAST, MEAN, PRE, Dense, EncoderSpec, Layer, LayerNorm, LinearName, Norm
from bei.architectures.tensor_names import TensorNames, affine, layer_tensors
from bei.errors import SetupError, short

_POOLED = {"cls": FIRST, "mean": MEAN}


def _spec(config: Config) -> EncoderSpec:
    hidden = read(config, "hidden_size")
    sizes = attention_sizes(hidden, read(config, "num_attention_heads"))
    attention: tuple[LinearName, ...] = ("qkv", "out") if config.get("attention_bias") else ()
    mlp: tuple[LinearName, ...] = ("up", "down") if config.get("mlp_bias") else ()
    return EncoderSpec(
        vocab_size=read(config, "vocab_size"),
        hidden_size=hidden,
        embedding_size=hidden,
        **sizes,
        intermediate_size=read(config, "intermediate_size"),
        activation=activation(config.get("hidden_activation", "gelu")),
        gated=True,
        norm=Norm("layer", config.get("norm_eps", 1e-5), bias=config.get("norm_bias", False)),
        layers=tuple(_layer(config, i, kind, sizes["head_size"]) for i, kind in enumerate(_kinds(config))),
        max_tokens=read(config, "max_position_embeddings"),
        biases=(*attention, *mlp),
        final_norm=True,
    )


def _kinds(config: Config) -> list[str]:
    every = config.get("global_attn_every_n_layers", 3)
    kinds = ("sliding_attention" if i % every else "full_attention" for i in range(read(config, "num_hidden_layers")))
    return layer_kinds(config, list(kinds))


def _layer(config: Config, i: int, kind: str, head_size: int) -> Layer:
    """The norm of the embeddings stands for that of the first layer's input. Half of a window is on each side."""
    norms = PRE if i else ("ffn_in",)
    if kind == "full_attention":
        return Layer(norms, None, rotary(config, head_size, kind, config.get("global_rope_theta", 160_000.0)))
    base = config.get("local_rope_theta") or config.get("global_rope_theta", 10_000.0)
    return Layer(norms, config.get("local_attention", 128) // 2, rotary(config, head_size, kind, base))


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    layers = layer_tensors(
        spec,
        "layers",
        attention_in=("attn_norm",),
        qkv=("attn.Wqkv",),
        out=("attn.Wo",),
        ffn_in=("mlp_norm",),
        up=("mlp.Wi",),
        down=("mlp.Wo",),
    )
    return {
        "embeddings.token": ("embeddings.tok_embeddings.weight",),
        **affine("embeddings.norm", "embeddings.norm", bias=spec.norm.bias),
        **layers,
        **affine("final_norm", "final_norm", bias=spec.norm.bias),
    }


def _head(config: Config, spec: EncoderSpec) -> tuple[NamedHeadLayer, ...]:
    hidden, bias = spec.hidden_size, config.get("classifier_bias", False)
    return (
        (Dense(hidden, hidden, bias, activation(config.get("classifier_activation", "gelu"))), ("head.dense",)),
        (LayerNorm(hidden, spec.norm.eps, spec.norm.bias), ("head.norm",)),
    )


def _classifier(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    last = (Dense(spec.hidden_size, outputs, True, "identity"), ("classifier",))
    pooling = config.get("classifier_pooling", "cls")
    if pooling not in _POOLED:
        raise SetupError(f"config.json: classifier_pooling {short(pooling)} is not supported; supported: cls, mean")
    return TaskHead(pooling=_POOLED[pooling], layers=(*_head(config, spec), last))


def _tagger(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    return TaskHead((*_head(config, spec), (Dense(spec.hidden_size, outputs, True, "identity"), ("classifier",))))


def _masked_lm(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    words = Dense(spec.hidden_size, outputs, config.get("decoder_bias", True), "identity")
    return TaskHead((*_head(config, spec), (words, ("decoder", "embeddings.tok_embeddings"))))


def _decoder(config: Config) -> EncoderSpec:
    """`sliding_window` is all before the token; where only `local_attention` is stated, it is half of that."""
    config = {"local_rope_theta": 10_000.0, **config}
    spec, stated = _spec(config), config.get("sliding_window")
    seen = farthest(config, max(config.get("local_attention", 128) // 2 if stated is None else stated, 1))
    layers = (of if of.window is None else replace(of, window=seen) for of in spec.layers)
    return replace(spec, layers=tuple(layers), causal=is_causal(config), pooling=LAST)


def _decoder_tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    parts = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
    return {**_tensors(config, spec), **layer_tensors(spec, "layers", qkv=parts)}


def _decoder_classifier(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    bias = config.get("classifier_bias", False)
    last = (Dense(spec.hidden_size, outputs, bias, "identity"), ("classifier",))
    return TaskHead(pooling=LAST, layers=(*_head(config, spec), last))


MODERNBERT = Family(
    _spec,
    _tensors,
    ("model.", ""),
    (r"head\.", r"decoder\.", r"classifier\."),
    {"SequenceClassification": _classifier, "TokenClassification": _tagger, "MaskedLM": _masked_lm},
    FIRST,
)
MODERNBERT_DECODER = Family(
    _decoder,
    _decoder_tensors,
    ("model.", ""),
    (r"head\.", r"lm_head\.", r"decoder\.", r"classifier\."),
    {"SequenceClassification": _decoder_classifier},
    LAST,
)
