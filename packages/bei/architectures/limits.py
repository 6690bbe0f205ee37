"""Bounds and types of config.json's values. An absurd number would cost memory or time before a tensor could contradict
it, and a value of a wrong type would fail far from the file that it came from."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bei.errors import SetupError, short

_MOST = 2**31 - 1
_LAYERS, _SIZE = 512, 1 << 16
_COUNTS: dict[str, int] = {
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layers",
            "n_layer",
            "num_hidden_groups",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
        ),
        _LAYERS,
    ),
    "inner_group_num": 16,
    **dict.fromkeys(("hidden_size", "head_dim", "dim", "n_embd", "embedding_size", "d_model", "d_kv"), _SIZE),
    **dict.fromkeys(
        ("num_attention_heads", "num_key_value_heads", "n_heads", "n_head", "num_heads", "encoder_attention_heads"),
        _SIZE,
    ),
}


def check_counts(config: Mapping[str, Any]) -> None:
    """Raises SetupError for an absurd size or number of layers."""
    for key, most in _COUNTS.items():
        value = config.get(key)
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise SetupError(f"config.json: `{key}` must be a whole number from 1 to {most}, not {short(value)}")


def check_types(value: Any, kind: Any, name: str) -> None:
    """Raises SetupError, which names the field, if a value, or anything in a dataclass of ours, is not of its declared
    type. Integers must not be negative, and floats must be finite."""
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, kind):
        for field, of in get_type_hints(kind).items():
            if field in {known.name for known in fields(kind)}:
                check_types(getattr(value, field), of, f"{name}.{field}")
    elif get_origin(kind) is tuple and isinstance(value, tuple):
        for item in value:
            check_types(item, get_args(kind)[0], name)
    elif get_origin(kind) in (Union, UnionType):
        classes = (of for of in get_args(kind) if isinstance(of, type) and is_dataclass(of))
        exact = next((of for of in classes if isinstance(value, of)), None)
        if exact is not None:
            check_types(value, exact, name)
        elif not any(_is(value, of) for of in get_args(kind)):
            raise _refusal(value, name)
    elif not _is(value, kind):
        raise _refusal(value, name)


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is not None and issubclass(get_origin(kind), Mapping):
        return isinstance(value, Mapping) and all(isinstance(part, str) for pair in value.items() for part in pair)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and 0 <= value <= _MOST
    return type(value) is kind if kind in (bool, str, NoneType) else False


def _refusal(value: Any, name: str) -> SetupError:
    return SetupError(f"the checkpoint's JSON files: {name} cannot be {short(value)}")
