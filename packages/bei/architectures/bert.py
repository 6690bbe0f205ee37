"""BERT (arXiv:1810.04805); RoBERTa, XLM-RoBERTa and CamemBERT, whose positions start elsewhere; XLM-RoBERTa-XL
(arXiv:2105.00572), whose norms come first; ELECTRA (arXiv:2003.10555), whose embeddings may be narrower than its
layers; and ERNIE (arXiv:1907.12412), which has the embedding of a task."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bei.architectures.config import attention_sizes, bert_sizes, read
from bei.architectures.family import Family
from bei.architectures.spec import FIRST, PRE, EncoderSpec, Layer, Norm
from bei.architectures.tensor_names import TensorNames, TensorSlice, affine, bert_tensors
from bei.architectures.usual_heads import BERT_MASKED_LM, masked_lm, one_dense, two_dense
from bei.errors import SetupError, short


def _spec(config: Mapping[str, Any], position_offset: int) -> EncoderSpec:
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise SetupError(
            f"config.json: position_embedding_type {short(config['position_embedding_type'])} is not supported"
        )
    if config.get("is_decoder"):
        raise SetupError("config.json: is_decoder is set; a causal BERT is not an encoder")
    return EncoderSpec(
        **bert_sizes(config),
        layers=(Layer(),) * read(config, "num_hidden_layers"),
        **attention_sizes(read(config, "hidden_size"), read(config, "num_attention_heads")),
        norm=Norm("layer", config.get("layer_norm_eps", 1e-12), bias=True),
        max_tokens=read(config, "max_position_embeddings") - position_offset,
        position_offset=position_offset,
        token_types=config.get("type_vocab_size", 2),
    )


def _bert(config: Mapping[str, Any]) -> EncoderSpec:
    return _spec(config, position_offset=0)


def _electra(config: Mapping[str, Any]) -> EncoderSpec:
    return replace(_spec(config, position_offset=0), embedding_size=config.get("embedding_size", 128))


def _roberta(config: Mapping[str, Any]) -> EncoderSpec:
    """Positions start at the padding id + 1 (transformers, create_position_ids_from_input_ids)."""
    return _spec(config, position_offset=config.get("pad_token_id", 1) + 1)


def _xlm_roberta_xl(config: Mapping[str, Any]) -> EncoderSpec:
    spec = _roberta({"layer_norm_eps": 1e-5, "type_vocab_size": 1, **config})
    return replace(spec, layers=(Layer(PRE),) * len(spec.layers), embedding_norm=False, final_norm=True)


def _xlm_roberta_xl_tensors(config: Mapping[str, Any], spec: EncoderSpec) -> TensorNames:
    names = bert_tensors(config, spec, attention_in=("attention.self_attn_layer_norm",), ffn_in=("LayerNorm",))
    return {**names, **affine("final_norm", "encoder.LayerNorm")}


def _ernie_tensors(config: Mapping[str, Any], spec: EncoderSpec) -> TensorNames:
    """Every text is of task 0, whose embedding is added to those of the types."""
    names = bert_tensors(config, spec)
    if not config.get("use_task_id"):
        return names
    task = "embeddings.task_type_embeddings.weight"
    types = TensorSlice("embeddings.token_type_embeddings.weight", 0, spec.token_types, plus=task)
    return {**names, "embeddings.token_type": (types,)}


_IGNORED = (
    *(r"pooler\.", r"cls\.", r"lm_head\.", r"classifier\.", r"qa_outputs\."),
    *(r"generator_", r"discriminator_"),
)

BERT = Family(
    _bert,
    bert_tensors,
    ("", "bert."),
    _IGNORED,
    heads={
        "SequenceClassification": two_dense("pooler.dense", "tanh", "classifier"),
        "TokenClassification": one_dense,
        "MaskedLM": BERT_MASKED_LM,
    },
    pooling=FIRST,
)
ROBERTA = Family(
    _roberta,
    bert_tensors,
    ("", "roberta."),
    _IGNORED,
    heads={
        "SequenceClassification": two_dense("classifier.dense", "tanh", "classifier.out_proj"),
        "TokenClassification": one_dense,
        "MaskedLM": masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head", activation="gelu"),
    },
    pooling=FIRST,
)
XLM_ROBERTA_XL = replace(ROBERTA, spec=_xlm_roberta_xl, tensors=_xlm_roberta_xl_tensors)
ERNIE = replace(BERT, tensors=_ernie_tensors, prefixes=("", "ernie."))
ELECTRA = Family(
    _electra,
    bert_tensors,
    ("", "electra."),
    _IGNORED,
    heads={
        "SequenceClassification": two_dense("classifier.dense", "gelu", "classifier.out_proj"),
        "TokenClassification": one_dense,
        "MaskedLM": masked_lm(
            "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head", activation="gelu"
        ),
    },
)
