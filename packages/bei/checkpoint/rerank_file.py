"""A template of the user's own for a language model that reranks: a JSON file with the texts of a PairTemplate."""

import json
from pathlib import Path
from string import Formatter
from typing import Any

from bei.checkpoint.reranking import TEMPLATES, PairTemplate
from bei.errors import SetupError, one_line, short, why
from bei.files import expanded

_MOST = 1 << 16  # bytes
_PARTS = {
    "prefix": frozenset[str](),
    "body": frozenset({"query", "document", "instruction"}),
    "plain": frozenset({"query", "document"}),
    "suffix": frozenset({"instruction"}),
}
"""The parts of a prompt, and the places that each may have."""
_WORDS = ("yes", "no", "instruction")


def read_template(file: Path) -> PairTemplate:
    """Raises SetupError that names the file and the key."""
    stated = _read(file)
    unknown = sorted(stated.keys() - _PARTS.keys() - set(_WORDS))
    if unknown:
        raise SetupError(f"{file}: key {short(unknown[0])} is unknown; keys are {', '.join((*_PARTS, *_WORDS))}")
    parts = {key: _part(file, key, stated.get(key, "")) for key in _PARTS}
    words = {key: _word(file, key, stated.get(key)) for key in _WORDS}
    if not any("{instruction}" in piece for piece in parts["body"]) and not parts["plain"]:
        parts["plain"] = parts["body"]
    template = PairTemplate(
        prefix=parts["prefix"],
        body=parts["body"],
        suffix=parts["suffix"],
        yes=words["yes"],
        no=words["no"],
        instruction=words["instruction"],
        plain=parts["plain"],
    )
    _check(file, template)
    return template


def _read(file: Path) -> dict[str, Any]:
    try:
        with expanded(file).open("rb") as opened:
            content = opened.read(_MOST + 1)
    except FileNotFoundError:
        names = ", ".join((*TEMPLATES, "none"))
        raise SetupError(f"setting rerank_template: {short(str(file))} is no file, and none of {names}") from None
    except OSError as exc:
        raise SetupError(f"setting rerank_template: {file}: {why(exc)}") from None
    try:
        stated = json.loads(content.decode()) if len(content) <= _MOST else None
    except (ValueError, RecursionError) as exc:
        raise SetupError(f"{file} is not valid JSON: {one_line(exc)}") from None
    if not isinstance(stated, dict):
        raise SetupError(f"{file} must hold a JSON object of at most {_MOST} bytes")
    return stated


def _part(file: Path, key: str, value: Any) -> tuple[str, ...]:
    """A text, or texts that are tokenized separately. Raises SetupError for a place that this part cannot have."""
    pieces = [value] if isinstance(value, str) else value
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        raise SetupError(f"{file}: `{key}` must be a text, or a list of texts")
    for piece in pieces:
        try:
            fields = [field for _, *field in Formatter().parse(piece) if field[0] is not None]
        except ValueError as exc:
            raise SetupError(f"{file}: `{key}`: {one_line(exc)}; a brace of the text itself is doubled") from None
        for name, form, conversion in fields:
            if name not in _PARTS[key] or form or conversion:
                known = ", ".join(f"{{{place}}}" for place in sorted(_PARTS[key])) or "none"
                raise SetupError(f"{file}: `{key}` has the place {short(name)}; it may have {known}")
    return tuple(piece for piece in pieces if piece)


def _word(file: Path, key: str, value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and value):
        raise SetupError(f"{file}: `{key}` must be a text that is not empty")
    return value


def _check(file: Path, template: PairTemplate) -> None:
    """Raises SetupError for a template that would lose a text."""
    for key, body in (("body", template.body), ("plain", template.plain)):
        if (key == "body" or body) and ("{query}" not in "".join(body) or not body[-1].endswith("{document}")):
            raise SetupError(f"{file}: `{key}` must have the place {{query}}, and end with {{document}}")
    if template.takes_instruction and not template.instruction and not template.plain:
        raise SetupError(f"{file}: `instruction` is missing: the default one, or `plain`, the body without one")
    if template.no is not None and template.yes is None:
        raise SetupError(f"{file}: `no` needs `yes`")
