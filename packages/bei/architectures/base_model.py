"""The kind of a model as truss's `base_model` names it."""

from typing import Literal

from bei.architectures import decoder
from bei.architectures.family import Family
from bei.architectures.spec import LAST


def base_model(family: Family) -> Literal["encoder", "encoder_bert"]:
    """`encoder` is a language model, `encoder_bert` is BERT and its relatives."""
    decodes = family.pooling == LAST or family.heads.get("TokenClassification") is decoder.tagger
    return "encoder" if decodes else "encoder_bert"
