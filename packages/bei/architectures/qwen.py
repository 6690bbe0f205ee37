"""Qwen2 (arXiv:2407.10671): Llama with biased queries, keys and values. Qwen3 (arXiv:2505.09388): norms on queries and
keys instead, and in Qwen3-MoE experts. Two bidirectional variants of Qwen3: voyage-4-nano, which projects every
token, and pplx-embed."""

from dataclasses import replace

from bei.architectures.config import Config, activation, read, refuse_others
from bei.architectures.decoder import (
    HEADS,
    IGNORED,
    PREFIXES,
    attention_biases,
    decoder_spec,
    decoder_tensors,
    farthest,
    windows,
)
from bei.architectures.family import Family, NamedHeadLayer, TaskHead, no_layers
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, MEAN, PRE, Dense, EncoderSpec, Experts, Layer
from bei.architectures.tensor_names import TensorNames
from bei.errors import SetupError, short


def _layers(config: Config, size: int) -> tuple[Layer, ...]:
    count: int = read(config, "num_hidden_layers")
    if not config.get("use_sliding_window"):
        return (Layer(PRE, rotary=rotary(config, size)),) * count
    if not config.get("layer_types"):
        full = min(config.get("max_window_layers", count), count)
        kinds = ["full_attention"] * full + ["sliding_attention"] * (count - full)
        config = {**config, "layer_types": kinds}
    return tuple(Layer(PRE, window, rotary(config, size)) for window in windows(config))


def _qwen2(config: Config) -> EncoderSpec:
    size = read(config, "hidden_size") // read(config, "num_attention_heads")
    return decoder_spec(config, head_size=size, layers=_layers(config, size), biases=("qkv",))


def _qwen3(config: Config) -> EncoderSpec:
    size = config.get("head_dim") or 128
    layers = _layers(config, size)
    return decoder_spec(config, head_size=size, layers=layers, qk_norm=True, biases=attention_biases(config))


def _qwen3_moe(config: Config) -> EncoderSpec:
    """Every layer has the window, if there is one (transformers, Qwen3MoeModel)."""
    hidden, heads = read(config, "hidden_size"), read(config, "num_attention_heads")
    size = config.get("head_dim") or hidden // heads
    window = read(config, "sliding_window") if config.get("use_sliding_window") else None
    experts = Experts(
        count=_expert_count(config),
        chosen=config.get("num_experts_per_tok", 8),
        intermediate_size=config.get("moe_intermediate_size", 768),
        activation=activation(config.get("hidden_act", "silu")),
        normalized=bool(config.get("norm_topk_prob", False)),
    )
    layer = Layer(PRE, farthest(config, window), rotary(config, size))
    layers = (replace(layer, experts=experts if has else None) for has in _has_experts(config))
    return decoder_spec(
        config,
        head_size=size,
        attention_scale=size**-0.5,
        layers=tuple(layers),
        qk_norm=True,
        biases=attention_biases(config),
    )


def _expert_count(config: Config) -> int:
    stated = config.get("num_experts")
    count: int = config.get("num_local_experts", 128) if stated is None else stated
    return count


def _has_experts(config: Config) -> list[bool]:
    """Of each layer: every `decoder_sparse_step`-th one, but none of `mlp_only_layers`."""
    plain, step = config.get("mlp_only_layers") or [], config.get("decoder_sparse_step", 1)
    if not isinstance(plain, list) or any(type(i) is not int for i in plain):
        raise SetupError(f"config.json: mlp_only_layers must be a list of layers, not {short(plain)}")
    has_any = _expert_count(config) > 0
    return [has_any and i not in plain and (i + 1) % step == 0 for i in range(read(config, "num_hidden_layers"))]


def _moe_tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = dict(decoder_tensors(config, spec))
    for i, layer in enumerate(spec.layers):
        mlp = f"layers.{i}.mlp"
        for expert in range(layer.experts.count if layer.experts else 0):
            ours, theirs = f"layers.{i}.experts.{expert}", f"{mlp}.experts.{expert}"
            names[f"{ours}.up.weight"] = f"{theirs}.gate_proj.weight", f"{theirs}.up_proj.weight"
            names[f"{ours}.down.weight"] = (f"{theirs}.down_proj.weight",)
        if layer.experts:
            names[f"layers.{i}.router.weight"] = (f"{mlp}.gate.weight",)
    return names


def _projection(config: Config, spec: EncoderSpec) -> tuple[NamedHeadLayer, ...]:
    """voyage-4-nano's `linear`, whose outputs its config.json states as `num_labels` (Qwen3BidirectionalModel of its
    own code; VoyageQwen3BidirectionalEmbedModel of vLLM)."""
    outputs = config.get("num_labels")
    if spec.causal or outputs is None:
        return ()
    return ((Dense(spec.hidden_size, outputs, False, "identity"), ("linear",)),)


def _pplx(config: Config) -> EncoderSpec:
    refuse_others(config, {"use_bidirectional_attention": True, "is_causal": False})
    return _qwen3(config)


def _reward(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    """Qwen2.5-Math-RM: two layers on the last token (Qwen2ForRewardModel of its repository)."""
    hidden = spec.hidden_size
    layers = ((Dense(hidden, hidden, True, "relu"), ("score.0",)), (Dense(hidden, 1, True, "identity"), ("score.2",)))
    return TaskHead(pooling=LAST, layers=layers)


def _projector(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    """jina-reranker-v3 (JinaForRanking of its repository)."""
    hidden, half = spec.hidden_size, spec.hidden_size // 2
    layers = (Dense(hidden, half, False, "relu"), Dense(half, outputs, False, "identity"))
    return TaskHead(tuple(zip(layers, (("projector.0",), ("projector.2",)), strict=True)))


QWEN2 = Family(_qwen2, decoder_tensors, PREFIXES, IGNORED, {**HEADS, "RewardModel": _reward}, LAST)
QWEN3 = Family(_qwen3, decoder_tensors, PREFIXES, IGNORED, {**HEADS, "Ranking": _projector}, LAST, _projection)
QWEN3_MOE = Family(_qwen3_moe, _moe_tensors, PREFIXES, IGNORED, HEADS, LAST)
PPLX_QWEN3 = replace(QWEN3, spec=_pplx, heads=HEADS, pooling=MEAN, token_layers=no_layers)
