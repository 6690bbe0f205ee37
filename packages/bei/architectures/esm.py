"""ESM-2 and ESM-1b (Rives et al., PNAS 2021; Lin et al., Science 2023): RoBERTa for proteins, with norms first, and
with rotary embeddings in ESM-2."""

from dataclasses import replace

from bei.architectures.bert import ROBERTA
from bei.architectures.config import Config, read, refuse_others
from bei.architectures.family import Family
from bei.architectures.rope import rotary
from bei.architectures.spec import PRE, EncoderSpec, Layer
from bei.architectures.tensor_names import TensorNames, affine, bert_tensors
from bei.errors import SetupError, short

_MASKED = 0.15 * 0.8  # the share of masked tokens in training (transformers, EsmEmbeddings)


def _spec(config: Config) -> EncoderSpec:
    refuse_others(config, {"is_folding_model": False})
    kind = config.get("position_embedding_type", "absolute")
    if kind not in ("absolute", "rotary"):
        raise SetupError(
            f"config.json: position_embedding_type {short(kind)} is not supported; supported: absolute, rotary"
        )
    read(config, "pad_token_id")
    base = {"max_position_embeddings": 1026, **config, "position_embedding_type": "absolute", "hidden_act": "gelu"}
    spec = ROBERTA.spec(base)
    rope = rotary({"rope_theta": config.get("rope_theta", 10_000.0)}, spec.head_size) if kind == "rotary" else None
    return replace(
        spec,
        layers=(Layer(PRE, rotary=rope),) * len(spec.layers),
        position_offset=None if rope else spec.position_offset,
        max_tokens=base["max_position_embeddings"] if rope else spec.max_tokens,
        token_types=0,
        embedding_norm=bool(config.get("emb_layer_norm_before")),
        embedding_scale=1 - _MASKED if config.get("token_dropout") else 1.0,
        dropped_token=read(config, "mask_token_id") if config.get("token_dropout") else None,
        final_norm=True,
    )


def _tensors(config: Config, spec: EncoderSpec) -> TensorNames:
    names = bert_tensors(config, spec, attention_in=("attention.LayerNorm",), ffn_in=("LayerNorm",))
    norm = affine("embeddings.norm", "embeddings.layer_norm") if spec.embedding_norm else {}
    return {**names, **norm, **affine("final_norm", "encoder.emb_layer_norm_after")}


ESM = Family(
    _spec,
    _tensors,
    ("", "esm."),
    (*ROBERTA.ignored, r"contact_head\.", r"embeddings\.position_embeddings\.", r"rotary_embeddings\."),
    ROBERTA.heads,
    ROBERTA.pooling,
)
