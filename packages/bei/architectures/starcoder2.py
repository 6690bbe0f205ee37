"""StarCoder 2 (arXiv:2402.19173): Llama with layer norms, biases, and an MLP without a gate."""

from functools import partial

from bei.architectures.config import Config, activation, read
from bei.architectures.decoder import HEADS, IGNORED, PREFIXES, decoder_spec, decoder_tensors, farthest
from bei.architectures.family import Family
from bei.architectures.rope import rotary
from bei.architectures.spec import LAST, LINEARS, PRE, EncoderSpec, Layer, Norm


def _spec(config: Config) -> EncoderSpec:
    size = config.get("head_dim") or read(config, "hidden_size") // read(config, "num_attention_heads")
    window = config.get("sliding_window")
    layer = Layer(PRE, farthest(config, window), rotary(config, size))
    return decoder_spec(
        config,
        layers=(layer,) * read(config, "num_hidden_layers"),
        kv_heads=config.get("num_key_value_heads", 2),
        norm=Norm("layer", config.get("norm_epsilon", 1e-5), bias=True),
        activation=activation(config.get("hidden_act", "gelu_pytorch_tanh")),
        gated=False,
        biases=LINEARS if config.get("use_bias", True) else (),
    )


STARCODER2 = Family(
    _spec, partial(decoder_tensors, up=("mlp.c_fc",), down=("mlp.c_proj",)), PREFIXES, IGNORED, HEADS, LAST
)
