"""StableLM (arXiv:2402.17834): Llama with layer norms and a quarter of each head rotated."""

from bei.architectures.config import Config, read, refuse_others
from bei.architectures.decoder import HEADS, IGNORED, PREFIXES, decoder_spec, decoder_tensors, is_causal
from bei.architectures.family import Family
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, PRE, EncoderSpec, Layer, Norm
from bei.architectures.tensor_names import TensorNames

_SHARED = {"attention_in": "input_layernorm", "ffn_in": "input_layernorm"}
"""If attention and MLP read the same input, they also share its norm."""


def _stablelm(config: Config) -> EncoderSpec:
    refuse_others(config, {"qk_layernorm": False})
    size = read(config, "hidden_size") // read(config, "num_attention_heads")
    rotated = rotary(config, size, partial=0.25)
    return decoder_spec(
        config,
        head_size=size,
        attention_scale=size**-0.5,
        kv_heads=config.get("num_key_value_heads", 32),
        layers=(Layer(PRE, rotary=rotated),) * read(config, "num_hidden_layers"),
        norm=Norm("layer", config.get("layer_norm_eps", 1e-5), bias=True),
        biases=("qkv",) if config.get("use_qkv_bias") else (),
        parallel=config.get("use_parallel_residual", False),
        causal=is_causal(config),
    )


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    return decoder_tensors(config, spec, _SHARED if spec.parallel else None)


STABLELM = Family(_stablelm, _tensors, PREFIXES, IGNORED, HEADS, LAST)
