"""The families that slow tests pass by have no word of a spec that others lack, so they run no code of their own."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import pytest

from bei.architectures import families
from tests.support.tiny_models import ALIKE, FAMILIES, random_model


def words(value: object, place: str = "spec") -> Iterator[tuple[str, object]]:
    """Each field and its value; of numbers only that there is one."""
    if isinstance(value, tuple):
        for part in value:
            yield from words(part, place)
    elif is_dataclass(value):
        yield place, type(value).__name__
        for field in fields(value):
            yield from words(getattr(value, field.name), f"{place}.{field.name}")
    else:
        is_word = isinstance(value, (str, bool)) or value is None
        yield place, value if is_word else "a number"


def words_of(family: str) -> set[tuple[str, object]]:
    return set(words(families.FAMILIES[family].spec(random_model(family).config.to_dict())))


@pytest.fixture(scope="module")
def of_others() -> set[tuple[str, object]]:
    return set().union(*(words_of(family) for family in FAMILIES if family not in ALIKE))


@pytest.mark.parametrize("family", ALIKE)
def test_it_has_no_word_of_its_own(of_others, family):
    assert words_of(family) <= of_others
