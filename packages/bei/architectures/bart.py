"""BART (arXiv:1910.13461): an encoder with BERT's layers, and a decoder that reads the same text one place later. Its
states are the decoder's, and its classifiers read that of the last token."""

from collections.abc import Mapping

from bei.architectures.config import Config, activation, attention_sizes, read, refuse_others
from bei.architectures.family import Family, HeadKind, TaskHead
from bei.architectures.spec import LAST, CrossDecoder, Dense, EncoderSpec, Layer, Norm
from bei.architectures.tensor_names import Part, TensorNames, affine, layer_tensors
from bei.architectures.usual_heads import HeadMaker
from bei.errors import SetupError

_OFFSET = 2  # transformers, BartLearnedPositionalEmbedding
_OTHERS = {
    **{"normalize_before": False, "add_final_layer_norm": False, "normalize_embedding": True},
    **{"static_position_embeddings": False},
}
_ATTENTION = ("q_proj", "k_proj", "v_proj")


def _spec(config: Config) -> EncoderSpec:
    refuse_others(config, _OTHERS)
    hidden, inner = read(config, "d_model"), read(config, "encoder_ffn_dim")
    start, words = config.get("decoder_start_token_id", 2), read(config, "vocab_size")
    if start >= words:
        raise SetupError(
            f"config.json: decoder_start_token_id {start} is not one of the {words} tokens of the vocabulary"
        )
    heads = read(config, "encoder_attention_heads")
    same = {
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": inner,
        "num_hidden_layers": read(config, "encoder_layers"),
    }
    refuse_others(config, same)
    return EncoderSpec(
        vocab_size=words,
        hidden_size=hidden,
        embedding_size=hidden,
        **attention_sizes(hidden, heads),
        intermediate_size=inner,
        activation=activation(config.get("activation_function", "gelu")),
        norm=Norm("layer", 1e-5, bias=True),
        layers=(Layer(),) * read(config, "encoder_layers"),
        max_tokens=config.get("max_position_embeddings", 1024),
        position_offset=_OFFSET,
        embedding_scale=hidden**0.5 if config.get("scale_embedding") else 1.0,
        decoder=CrossDecoder(read(config, "decoder_layers"), start),
        pooling=LAST,
    )


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    encoder = layer_tensors(
        spec,
        "encoder.layers",
        qkv=tuple(f"self_attn.{part}" for part in _ATTENTION),
        out=("self_attn.out_proj",),
        attention_end=("self_attn_layer_norm",),
        up=("fc1",),
        down=("fc2",),
        ffn_end=("final_layer_norm",),
    )
    return {
        "embeddings.token": ("shared.weight",),
        "embeddings.position": ("encoder.embed_positions.weight",),
        **affine("embeddings.norm", "encoder.layernorm_embedding"),
        **encoder,
        **_decoder(spec),
    }


def _decoder(spec: EncoderSpec) -> dict[str, tuple[Part, ...]]:
    names: dict[str, tuple[Part, ...]] = {
        "decoder.position": ("decoder.embed_positions.weight",),
        **affine("decoder.norm", "decoder.layernorm_embedding"),
    }
    parts = {
        "qkv": tuple(f"self_attn.{part}" for part in _ATTENTION),
        "out": ("self_attn.out_proj",),
        "attention_end": ("self_attn_layer_norm",),
        "query": ("encoder_attn.q_proj",),
        "key_value": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
        "cross_out": ("encoder_attn.out_proj",),
        "cross_end": ("encoder_attn_layer_norm",),
        "up": ("fc1",),
        "down": ("fc2",),
        "ffn_end": ("final_layer_norm",),
    }
    for i in range(spec.decoder.layers if spec.decoder else 0):
        for ours, theirs in parts.items():
            names |= affine(f"decoder.layers.{i}.{ours}", *(f"decoder.layers.{i}.{part}" for part in theirs))
    return names


def _classifier(config: Config, spec: EncoderSpec, outputs: int) -> TaskHead:
    hidden = spec.hidden_size
    layers = (
        (Dense(hidden, hidden, True, "tanh"), ("classification_head.dense",)),
        (Dense(hidden, outputs, True, "identity"), ("classification_head.out_proj",)),
    )
    return TaskHead(pooling=LAST, layers=layers)


_HEADS: Mapping[HeadKind, HeadMaker] = {"SequenceClassification": _classifier}
BART = Family(
    _spec,
    _tensors,
    ("model.", ""),
    (
        r"(encoder|decoder)\.embed_tokens\.",
        r"final_logits_bias$",
        r"lm_head\.",
        r"classification_head\.",
        r"qa_outputs\.",
    ),
    _HEADS,
)
