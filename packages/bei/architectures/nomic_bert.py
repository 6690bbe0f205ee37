"""NomicBERT (arXiv:2402.01613): BERT with rotary and a gated MLP."""

from typing import Any

from bei.architectures.family import (
    Config,
    Family,
    TensorNames,
    affine,
    attention_sizes,
    bert_tensors,
    masked_lm,
    one_dense,
    read,
    refuse_others,
    two_dense,
)
from bei.architectures.rope import rotary
from bei.architectures.spec import FIRST, Activation, EncoderSpec, Layer, LinearName, Norm
from bei.errors import SetupError, short

_GATES: dict[str, Activation] = {"swiglu": "silu", "geglu": "gelu", "glu": "sigmoid", "silu": "silu", "gelu": "gelu"}
_OTHERS = {
    **{"prenorm": False, "use_rms_norm": False, "parallel_block": False, "rotary_emb_interleaved": False},
    **{"causal": False, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    **{"rotary_emb_scale_base": None, "position_embedding_type": "rope"},
}


def _spec(config: Config) -> EncoderSpec:
    if config.get("num_experts"):
        raise SetupError("config.json: num_experts: a mixture of experts is not supported; use nomic-embed-text-v1.5")
    refuse_others(config, _OTHERS)
    gate = _either(config, "activation_function", "hidden_act")
    if gate not in _GATES:
        raise SetupError(
            f"config.json: activation_function {short(gate)} is not supported; supported: {', '.join(_GATES)}"
        )
    hidden = _either(config, "n_embd", "hidden_size")
    sizes = attention_sizes(hidden, _either(config, "n_head", "num_attention_heads"), config.get("head_dim"))
    flags: dict[LinearName, str] = {
        "qkv": "qkv_proj_bias",
        "out": "qkv_proj_bias",
        "up": "mlp_fc1_bias",
        "down": "mlp_fc2_bias",
    }
    layer = Layer(rotary=rotary(_rope(config), sizes["head_size"]))
    return EncoderSpec(
        vocab_size=read(config, "vocab_size"),
        hidden_size=hidden,
        embedding_size=hidden,
        **sizes,
        intermediate_size=_either(config, "n_inner", "intermediate_size"),
        activation=_GATES[gate],
        gated=True,
        norm=Norm("layer", config.get("layer_norm_epsilon") or config.get("layer_norm_eps", 1e-12), bias=True),
        layers=(layer,) * _either(config, "n_layer", "num_hidden_layers"),
        max_tokens=_either(config, "n_positions", "max_position_embeddings"),
        biases=tuple(part for part, flag in flags.items() if config.get(flag)),
        token_types=config.get("type_vocab_size", 2),
    )


def _either(config: Config, published: str, modern: str) -> Any:
    """The value, under its name in the published config or under transformers' name."""
    return config[published] if config.get(published) is not None else read(config, modern)


def _rope(config: Config) -> dict[str, Any]:
    """The rotary fields of the published config, under transformers' names."""
    if "rotary_emb_fraction" not in config:
        return {"rope_theta": 1000.0, **config}
    scaling, trained = config.get("rotary_scaling_factor"), config.get("max_trained_positions", 2048)
    dynamic = {"type": "dynamic", "factor": scaling, "original_max_position_embeddings": trained}
    return {
        "rope_theta": config.get("rotary_emb_base", 10_000),
        "partial_rotary_factor": config["rotary_emb_fraction"],
        "rope_scaling": dynamic if scaling else None,
    }


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = bert_tensors(
        config,
        spec,
        layer="encoder.layers",
        qkv=("attn.Wqkv",),
        out=("attn.out_proj",),
        attention_end=("norm1",),
        up=("mlp.fc12", "mlp.fc11"),
        down=("mlp.fc2",),
        ffn_end=("norm2",),
    )
    return {**names, **affine("embeddings.norm", "emb_ln")}


NOMIC_BERT = Family(
    _spec,
    _tensors,
    ("", "bert.", "nomic_bert."),
    (r"pooler\.", r"cls\.", r"classifier\."),
    {
        "SequenceClassification": two_dense("pooler.dense", "tanh", "classifier"),
        "TokenClassification": one_dense,
        "MaskedLM": masked_lm(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.layer_norm",
            "cls.predictions.decoder",
            "cls.predictions",
        ),
    },
    FIRST,
)
