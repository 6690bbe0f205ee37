"""Which family reads a config.json: one line a `model_type`. A new architecture is one file here and its line."""

from collections.abc import Mapping
from typing import Any

from bei.architectures import bert, distilbert, mpnet
from bei.architectures.family import Family
from bei.errors import SetupError

FAMILIES: dict[str, Family] = {
    "bert": bert.BERT,
    "roberta": bert.ROBERTA,
    "xlm-roberta": bert.ROBERTA,
    "camembert": bert.ROBERTA,
    "electra": bert.ELECTRA,
    "distilbert": distilbert.DISTILBERT,
    "mpnet": mpnet.MPNET,
}


def family(config: Mapping[str, Any]) -> Family:
    """The family of a config.json. Raises SetupError for a `model_type` that has none."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise SetupError(f"config.json: model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
