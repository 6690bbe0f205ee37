"""NomicBERT (arXiv:2402.01613): BERT with rotary and a gated MLP. In v2-moe (arXiv:2502.07972) the MLP is not gated,
and that of every other layer is a mixture of experts, whose tensors are MegaBlocks'."""

from dataclasses import replace
from typing import Any

from bei.architectures.config import ACTIVATIONS, Config, attention_sizes, read, refuse_others
from bei.architectures.family import Family
from bei.architectures.rope import rotary
from bei.architectures.spec import FIRST, Activation, EncoderSpec, Experts, Layer, LinearName, Norm
from bei.architectures.tensor_names import Part, TensorNames, TensorSlice, affine, bert_tensors
from bei.architectures.usual_heads import masked_lm, one_dense, two_dense
from bei.errors import SetupError, short

_GATES: dict[str, Activation] = {"swiglu": "silu", "geglu": "gelu", "glu": "sigmoid"}
_MODERN_GATES: dict[str, Activation] = {"silu": "silu", "gelu": "gelu"}
_PLAIN = {name: ACTIVATIONS[name] for name in ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")}
_OTHERS = {
    **{"prenorm": False, "use_rms_norm": False, "parallel_block": False, "rotary_emb_interleaved": False},
    **{"causal": False, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    **{"rotary_emb_scale_base": None, "position_embedding_type": "rope"},
    **{"num_shared_experts": 0, "expert_choice_router": False, "moe_normalize_expert_weights": False, "ffn_div": 1},
}


def _spec(config: Config) -> EncoderSpec:
    refuse_others(config, _OTHERS)
    if config.get("num_experts") and not config.get("moe_every_n_layers"):
        raise SetupError("config.json: num_experts without moe_every_n_layers: no layer has them")
    act, gated = _activation(config)
    hidden = _either(config, "n_embd", "hidden_size")
    sizes = attention_sizes(hidden, _either(config, "n_head", "num_attention_heads"), config.get("head_dim"))
    flags: dict[LinearName, str] = {
        "qkv": "qkv_proj_bias",
        "out": "qkv_proj_bias",
        "up": "mlp_fc1_bias",
        "down": "mlp_fc2_bias",
    }
    layer = Layer(rotary=rotary(_rope(config), sizes["head_size"], partial=config.get("rotary_emb_fraction")))
    return EncoderSpec(
        vocab_size=read(config, "vocab_size"),
        hidden_size=hidden,
        embedding_size=hidden,
        **sizes,
        intermediate_size=_either(config, "n_inner", "intermediate_size"),
        activation=act,
        gated=gated,
        norm=Norm("layer", config.get("layer_norm_epsilon") or config.get("layer_norm_eps", 1e-12), bias=True),
        layers=_layers(config, layer, act, gated),
        max_tokens=_either(config, "n_positions", "max_position_embeddings"),
        biases=tuple(part for part, flag in flags.items() if config.get(flag)),
        token_types=config.get("type_vocab_size", 2),
    )


def _activation(config: Config) -> tuple[Activation, bool]:
    """The activation, and whether the MLP is gated. In the published config only the names of gates say so, and others
    are GELU; the MLP of transformers' class is always gated."""
    key = "hidden_act" if config.get("activation_function") is None else "activation_function"
    name, plain = read(config, key), _PLAIN if key == "activation_function" else {}
    gates = _GATES if plain else {**_GATES, **_MODERN_GATES}
    if name not in plain and name not in gates:
        raise SetupError(f"config.json: {key} {short(name)} is not supported; supported: {', '.join((*gates, *plain))}")
    return (gates[name], True) if name in gates else (plain[name], False)


def _layers(config: Config, layer: Layer, act: Activation, gated: bool) -> tuple[Layer, ...]:
    """Of every `moe_every_n_layers` layers the second one has experts."""
    count: int = _either(config, "n_layer", "num_hidden_layers")
    every = config.get("moe_every_n_layers") or 0
    if not config.get("num_experts"):
        return (layer,) * count
    if gated:
        raise SetupError("config.json: activation_function: experts with a gated MLP are not supported")
    experts = Experts(
        count=config["num_experts"],
        chosen=config.get("moe_top_k", 1),
        intermediate_size=_either(config, "n_inner", "intermediate_size"),
        activation=act,
        gated=False,
        output_bias=True,
    )
    return tuple(replace(layer, experts=experts if i % every == 1 else None) for i in range(count))


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
        "rope_scaling": dynamic if scaling else None,
    }


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = dict(
        bert_tensors(
            config,
            spec,
            layer="encoder.layers",
            qkv=("attn.Wqkv",),
            out=("attn.out_proj",),
            attention_end=("norm1",),
            up=("mlp.fc12", "mlp.fc11") if spec.gated else ("mlp.fc1",),
            down=("mlp.fc2",),
            ffn_end=("norm2",),
        )
    )
    for i, of in enumerate(spec.layers):
        names |= _expert_tensors(i, of.experts) if of.experts else {}
    return {**names, **affine("embeddings.norm", "emb_ln")}


def _expert_tensors(i: int, experts: Experts) -> TensorNames:
    """`w1` and `w2` are [experts * intermediate, hidden]: the matrices of all experts, those of `w2` transposed."""
    mlp, size = f"encoder.layers.{i}.mlp", experts.intermediate_size
    names: dict[str, tuple[Part, ...]] = {
        f"layers.{i}.router.weight": (f"{mlp}.router.layer.weight",),
        f"layers.{i}.experts.bias": (f"{mlp}.experts.bias",),
    }
    for expert in range(experts.count):
        rows = expert * size, (expert + 1) * size
        names[f"layers.{i}.experts.{expert}.up.weight"] = (TensorSlice(f"{mlp}.experts.mlp.w1", *rows),)
        down = TensorSlice(f"{mlp}.experts.mlp.w2", *rows, transposed=True)
        names[f"layers.{i}.experts.{expert}.down.weight"] = (down,)
    return names


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
