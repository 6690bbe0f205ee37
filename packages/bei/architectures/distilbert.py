"""DistilBERT (arXiv:1910.01108): BERT without token types, under other names."""

from functools import partial

from bei.architectures.bert import BERT
from bei.architectures.config import Config, read
from bei.architectures.family import Family
from bei.architectures.spec import FIRST, EncoderSpec
from bei.architectures.tensor_names import bert_tensors
from bei.architectures.usual_heads import masked_lm, one_dense, two_dense

# BERT's name → DistilBERT's, of what its config.json must state.
_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_position_embeddings": "max_position_embeddings",
}


def _spec(config: Config) -> EncoderSpec:
    stated = {name: read(config, own) for name, own in _KEYS.items()}
    return BERT.spec({**stated, "hidden_act": config.get("activation", "gelu"), "type_vocab_size": 0})


_tensors = partial(
    bert_tensors,
    layer="transformer.layer",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out=("attention.out_lin",),
    attention_end=("sa_layer_norm",),
    up=("ffn.lin1",),
    down=("ffn.lin2",),
    ffn_end=("output_layer_norm",),
)

DISTILBERT = Family(
    _spec,
    _tensors,
    ("", "distilbert."),
    (r"vocab_", r"classifier\.", r"pre_classifier\.", r"qa_outputs\."),
    heads={
        "SequenceClassification": two_dense("pre_classifier", "relu", "classifier"),
        "TokenClassification": one_dense,
        "MaskedLM": masked_lm("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    },
    pooling=FIRST,
)
