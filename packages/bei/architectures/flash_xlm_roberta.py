"""XLM-RoBERTa as Jina AI publishes it (jina-embeddings-v3, arXiv:2409.10173; jina-colbert-v2; jina-reranker-v2): other
names of tensors, and rotary embeddings in place of learned positions, unless config.json says otherwise."""

from dataclasses import replace

from bei.architectures.bert import ROBERTA
from bei.architectures.config import Config, read, refuse_others
from bei.architectures.family import Family
from bei.architectures.positions import Rotary
from bei.architectures.rope import longest, rotary
from bei.architectures.spec import EncoderSpec, Layer
from bei.architectures.tensor_names import TensorNames, affine, bert_tensors
from bei.errors import SetupError, short

_DEFAULTS = {"layer_norm_eps": 1e-5, "type_vocab_size": 1}
_OTHERS = {"rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "lora_adaptations": None}


def _flash(config: Config) -> EncoderSpec:
    refuse_others(config, _OTHERS)
    kind = config.get("position_embedding_type", "rotary")
    if kind == "absolute":
        return ROBERTA.spec({**_DEFAULTS, **config})
    if kind != "rotary":
        raise SetupError(
            f"config.json: position_embedding_type {short(kind)} is not supported; supported: absolute, rotary"
        )
    size = read(config, "hidden_size") // read(config, "num_attention_heads")
    part = (config.get("rotary_emb_dim") or size) / size
    rope = {"rope_theta": config.get("rotary_emb_base", 10_000.0)}
    return _rotated(config, rotary(rope, size, partial=part), read(config, "max_position_embeddings"))


def _jina_v3(config: Config) -> EncoderSpec:
    size = read(config, "hidden_size") // read(config, "num_attention_heads")
    return _rotated(config, rotary({"rope_theta": 20_000.0, **config}, size), longest(config))


def _rotated(config: Config, rope: Rotary, max_tokens: int) -> EncoderSpec:
    spec = ROBERTA.spec({**_DEFAULTS, **config, "position_embedding_type": "absolute"})
    layers = (Layer(rotary=rope),) * len(spec.layers)
    return replace(spec, layers=layers, position_offset=None, max_tokens=max_tokens)


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = bert_tensors(
        config,
        spec,
        layer="encoder.layers",
        qkv=("mixer.Wqkv",),
        out=("mixer.out_proj",),
        attention_end=("norm1",),
        up=("mlp.fc1",),
        down=("mlp.fc2",),
        ffn_end=("norm2",),
    )
    return {**names, **affine("embeddings.norm", "emb_ln")}


FLASH = Family(_flash, _tensors, ROBERTA.prefixes, ROBERTA.ignored, ROBERTA.heads, ROBERTA.pooling)
JINA_V3 = replace(FLASH, spec=_jina_v3)
