"""The types of fields in bodies, in every form that clients send, each with its JSON schema."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, PlainValidator, StrictInt, WithJsonSchema

from bei.tokenizer import Input

_TEXT, _IDS = {"type": "string"}, {"type": "array", "items": {"type": "integer", "minimum": 0}}
_MIXED = {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}}


def _texts_or_ids(value: Any) -> list[Input]:
    """A text, token ids, or a list of either → a list of inputs."""
    if isinstance(value, str) or _is_ids(value):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) or _is_ids(item, empty=True) for item in value):
        return value
    raise ValueError("must be a string, a list of strings, or token ids")


def _items(value: Any) -> list[Input]:
    """The same, where Jina's clients wrap each text: {"text": a text}."""
    if isinstance(value, str):
        return [value]
    unwrapped = [_text_of(item) for item in value] if isinstance(value, list) else _text_of(value)
    try:
        return _texts_or_ids(unwrapped)
    except ValueError:
        raise ValueError('must be a string, a list of strings, token ids, or objects {"text": string}') from None


def _text_of(item: Any) -> Any:
    """The text of an object that has a text and nothing else."""
    return item["text"] if isinstance(item, dict) and item.keys() == {"text"} else item


def _is_ids(value: Any, empty: bool = False) -> bool:
    return isinstance(value, list) and (empty or bool(value)) and all(type(item) is int for item in value)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise ValueError("must be a string or a list of strings")


def _id_lists(value: Any) -> list[list[int]]:
    if _is_ids(value):
        return [value]
    if isinstance(value, list) and all(_is_ids(item, empty=True) for item in value):
        return value
    raise ValueError("must be token ids, or a list of them")


Inputs = Annotated[list[Input], PlainValidator(_texts_or_ids), WithJsonSchema({"anyOf": [_TEXT, _IDS, _MIXED]})]
_OBJECT = {"type": "object", "required": ["text"], "properties": {"text": _TEXT}, "additionalProperties": False}
_ITEMS = {"type": "array", "items": {"anyOf": [_TEXT, _IDS, _OBJECT]}}
Items = Annotated[list[Input], PlainValidator(_items), WithJsonSchema({"anyOf": [_TEXT, _OBJECT, _IDS, _ITEMS]})]
"""Inputs, whose texts may stand in objects."""

Dimensions = Annotated[StrictInt, Field(ge=0)] | None
"""0 and null mean all of them."""

MaxTokens = Annotated[StrictInt, Field(ge=0)] | None
"""0 and null mean no limit."""

TopN = MaxTokens

Texts = Annotated[
    list[str], PlainValidator(_texts), WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]})
]
IdLists = Annotated[
    list[list[int]], PlainValidator(_id_lists), WithJsonSchema({"anyOf": [_IDS, {"type": "array", "items": _IDS}]})
]


@dataclass(frozen=True)
class Predictions:
    """`nested`: the answer is a list per input, because the request could have had several."""

    inputs: list[Input]
    nested: bool


def _predictions(value: Any) -> Predictions:
    """A text; a list of one text, or of two that form a pair; or a list of such lists."""
    if isinstance(value, str):
        return Predictions([value], nested=False)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return Predictions([_single_or_pair(value)], nested=False)
    if isinstance(value, list) and all(isinstance(item, list) for item in value):
        return Predictions([_single_or_pair(item) for item in value], nested=True)
    raise ValueError("must be a string, a pair of strings, or a list of lists of one or two strings")


def _single_or_pair(texts: list[Any]) -> Input:
    if len(texts) not in (1, 2) or not all(isinstance(text, str) for text in texts):
        raise ValueError("must be lists of one text or of a pair of texts; send a batch as [[text], [text], ...]")
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


_ONE_OR_TWO = {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 2}
PredictInputs = Annotated[
    Predictions,
    PlainValidator(_predictions),
    WithJsonSchema({"anyOf": [_TEXT, _ONE_OR_TWO, {"type": "array", "items": _ONE_OR_TWO}]}),
]


def _documents(value: Any) -> list[str]:
    """A text, texts, or texts each in a list of its own."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        texts = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in value]
        if all(isinstance(text, str) for text in texts):
            return texts
    raise ValueError("must be a string, a list of strings, or a list of lists of one string")


_ONE = {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 1}
Documents = Annotated[
    list[str],
    PlainValidator(_documents),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": [_TEXT, _ONE]}}]}),
]


_MOST_LABELS = 1 << 16  # in one text; those in a list are counted with the body's values


def _candidates(value: Any) -> list[str]:
    """Labels in a list, or in one text with commas between them, as transformers' pipeline takes them."""
    if isinstance(value, str) and value.count(",") > _MOST_LABELS:
        raise ValueError(f"must be at most {_MOST_LABELS} labels")
    listed = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if isinstance(listed, list) and listed and all(isinstance(label, str) and label.strip() for label in listed):
        return listed
    raise ValueError("must be a list of labels, or labels with commas between them")


Candidates = Annotated[
    list[str],
    PlainValidator(_candidates),
    WithJsonSchema({"anyOf": [{"type": "array", "items": _TEXT, "minItems": 1}, _TEXT]}),
]


def _named_labels(value: Any) -> dict[str, str]:
    """Labels in a list, or an object with the words that a model reads for each; equal labels are one."""
    found = value
    if isinstance(value, list) and all(isinstance(label, str) for label in value):
        found = {label: label for label in value}
    if not isinstance(found, dict) or not found:
        raise ValueError("must be a list of labels, or an object with a description of each")
    if not all(isinstance(words, str) and words.strip() for words in found.values()):
        raise ValueError("must be labels of at least one letter")
    return found


NamedLabels = Annotated[
    dict[str, str],
    PlainValidator(_named_labels),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": _TEXT, "minItems": 1},
                {"type": "object", "additionalProperties": _TEXT, "minProperties": 1},
            ]
        }
    ),
]


_TEXT_OBJECT = {"type": "object", "required": ["text"], "properties": {"text": _TEXT}}


def _document_texts(value: Any) -> list[str]:
    texts: list[Any] = (
        [item.get("text") if isinstance(item, dict) else item for item in value] if isinstance(value, list) else [0]
    )
    if not all(isinstance(text, str) for text in texts):
        raise ValueError('must be a list of strings, or of objects {"text": string}')
    return texts


DocumentTexts = Annotated[
    list[str],
    PlainValidator(_document_texts),
    WithJsonSchema({"type": "array", "items": {"anyOf": [_TEXT, _TEXT_OBJECT]}}),
]
