"""The settings as users see them: flag, variable, values, default and help, from the declarations."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bei.settings.block import TRTLLM
from bei.settings.keys import OBEYED

_KINDS = {int: "INTEGER", float: "NUMBER", Path: "PATH"}

_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


@dataclass(frozen=True)
class Setting:
    name: str
    group: str  # the group's docstring
    help: str
    default: str | None  # as a user would write it; None where the help explains an unset one
    values: str  # `INTEGER`, or `auto|native`
    bounds: str  # `, at least 1`
    is_switch: bool
    is_repeatable: bool

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return f"BEI_{self.name.upper()}"


def settings_of(*groups: type[BaseModel]) -> list[Setting]:
    """The settings of these groups and of their base groups. A field without help is no setting for users."""
    found = {setting.name: setting for group in groups for setting in _settings(group)}
    return list(found.values())


def _settings(group: type[BaseModel]) -> Iterator[Setting]:
    for declaring in reversed(group.__mro__):
        own = inspect.get_annotations(declaring) if issubclass(declaring, BaseModel) else {}
        for name in own:
            field = group.model_fields.get(name)
            if field is not None and field.description:
                yield _setting(name, inspect.cleandoc(declaring.__doc__ or ""), field, field.description)


def _setting(name: str, group: str, field: FieldInfo, help: str) -> Setting:
    kind = _kind(field.annotation)
    return Setting(
        name=name,
        group=group,
        help=help,
        default=_default(_of_block(name, kind) if field.is_required() else field.default),
        values=_values(kind),
        bounds="".join(f", {words} {bound}" for words, bound in _bounds(field.metadata)),
        is_switch=kind is bool,
        is_repeatable=get_origin(kind) is tuple,
    )


def _kind(annotation: Any) -> Any:
    """The type of a set value, for an optional setting, too."""
    kinds = get_args(annotation)
    return next(kind for kind in kinds if kind is not NoneType) if NoneType in kinds else annotation


def _of_block(name: str, kind: Any) -> Any:
    """The default of the key that sets a setting; None where it has none that is served."""
    *parents, last = next(key for key, setting in OBEYED.items() if setting == name).split(".")
    model: Any = TRTLLM
    for parent in parents:
        model = _kind(model.model_fields[parent].annotation)
    default = model.model_fields[last].get_default()
    return default if get_origin(kind) is not Literal or default in get_args(kind) else None


def _default(value: Any) -> str | None:
    if value in (None, (), PydanticUndefined):
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _bounds(metadata: list[Any]) -> Iterator[tuple[str, Any]]:
    for bound in metadata:
        for attribute, words in _BOUNDS.items():
            if hasattr(bound, attribute):
                yield words, getattr(bound, attribute)


def _values(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return "|".join(kind)
    return "true|false" if kind is bool else _KINDS.get(kind, "TEXT")
