"""OpenAI's privacy-filter: gpt-oss (arXiv:2508.10925) with attention in both directions, whose layers have experts,
attention sinks and a window (transformers, OpenAIPrivacyFilterModel)."""

from collections.abc import Iterator

from bei.architectures.config import Config, read
from bei.architectures.decoder import HEADS, IGNORED, PREFIXES, attention_biases, decoder_spec, decoder_tensors
from bei.architectures.family import Family
from bei.architectures.rope import rotary
from bei.architectures.spec import PRE, Clamp, EncoderSpec, Experts, Layer
from bei.architectures.tensor_names import Part, StackEntry, TensorNames, TensorSlice

_YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
_BASE = 150_000.0


def _spec(config: Config) -> EncoderSpec:
    size = config.get("head_dim") or read(config, "hidden_size") // read(config, "num_attention_heads")
    if not config.get("rope_scaling") and not config.get("rope_parameters"):
        config = {**config, "rope_parameters": _YARN}
    rotated = rotary({"rope_theta": _BASE, **config}, size)
    experts = Experts(
        count=config.get("num_local_experts") or config.get("num_experts") or 128,
        chosen=config.get("num_experts_per_tok", 4),
        intermediate_size=read(config, "intermediate_size"),
        activation=Clamp(config.get("swiglu_alpha", 1.702), config.get("swiglu_limit", 7.0)),
        normalized=True,
        biases=True,
    )
    layer = Layer(PRE, config.get("sliding_window", 128), rotated, experts)
    return decoder_spec(
        {"rms_norm_eps": 1e-5, "num_key_value_heads": 2, **config},
        head_size=size,
        attention_scale=size**-0.5,
        layers=(layer,) * read(config, "num_hidden_layers"),
        biases=attention_biases(config, qkv=True, out=True),
        causal=False,
        sinks=True,
    )


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = dict(decoder_tensors(config, spec))
    for i, layer in enumerate(spec.layers):
        for part in ("weight", "bias") if "qkv" in spec.biases else ("weight",):
            names[f"layers.{i}.qkv.{part}"] = tuple(_qkv(spec, f"layers.{i}.self_attn", part))
        names[f"layers.{i}.sinks"] = (f"layers.{i}.self_attn.sinks",)
        if layer.experts is not None:
            names |= _experts(i, layer.experts)
    return names


def _qkv(spec: EncoderSpec, attention: str, part: str) -> Iterator[Part]:
    """It rotates the pairs (0, 1), (2, 3), … of a head. Even rows first makes them the pairs (0, n), (1, n + 1), …"""
    for matrix, heads in (("q_proj", spec.heads), ("k_proj", spec.kv_heads)):
        for head in range(heads):
            first, last = head * spec.head_size, (head + 1) * spec.head_size
            yield from (TensorSlice(f"{attention}.{matrix}.{part}", first + odd, last, step=2) for odd in (0, 1))
    yield f"{attention}.v_proj.{part}"


def _experts(i: int, experts: Experts) -> TensorNames:
    """Each tensor is that of all experts; its matrices are [inputs, outputs]."""
    mlp = f"layers.{i}.mlp"
    names: dict[str, tuple[Part, ...]] = {
        f"layers.{i}.router.{part}": (f"{mlp}.router.{part}",) for part in ("weight", "bias")
    }
    for expert in range(experts.count):
        for ours, theirs in (("up", "gate_up_proj"), ("down", "down_proj")):
            name = f"layers.{i}.experts.{expert}.{ours}"
            names[f"{name}.weight"] = (StackEntry(f"{mlp}.experts.{theirs}", expert, transposed=True),)
            names[f"{name}.bias"] = (StackEntry(f"{mlp}.experts.{theirs}_bias", expert),)
    return names


PRIVACY_FILTER = Family(_spec, _tensors, PREFIXES, IGNORED, {"TokenClassification": HEADS["TokenClassification"]})
