"""Kinds of models that are refused by a line of their own, before anything else of them is read."""

import pytest

from bei.architectures.families import FAMILIES
from bei.checkpoint import not_served
from bei.checkpoint.load import read
from bei.errors import SetupError
from tests.support.tiny_models import write_json


@pytest.mark.parametrize("model_type", not_served.TYPES)
def test_a_type_is_refused_with_its_reason(tmp_path, model_type):
    write_json(tmp_path / "config.json", {"model_type": model_type, "architectures": ["SomeForSequenceClassification"]})
    with pytest.raises(SetupError) as refusal:
        read(tmp_path, "m")
    assert str(refusal.value) == f"config.json: model_type {model_type}: the model {not_served.TYPES[model_type]}"


def test_no_family_is_refused():
    assert not set(not_served.TYPES) & set(FAMILIES)
