"""The statements of tokenizer_config.json, special_tokens_map.json and added_tokens.json, in the order of precedence of
transformers' `PreTrainedTokenizerBase._from_pretrained`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from bei.checkpoint.modules import read_json
from bei.errors import SetupError, short

Token = str | AddedToken
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_EXTRA, _ADDITIONAL = "extra_special_tokens", "additional_special_tokens"


@dataclass(frozen=True)
class Stated:
    """`named`: the special tokens that the files give, None where a file says null; `own`: those of names that only
    this model has; `added_by_id`: those of added_tokens_decoder or added_tokens.json; `options`: the rest."""

    options: Mapping[str, Any]
    named: Mapping[str, Token | None]
    own: Mapping[str, Token]
    added_by_id: Mapping[int, AddedToken]

    @property
    def added(self) -> list[AddedToken]:
        return [self.added_by_id[id] for id in sorted(self.added_by_id)]

    def extra(self, additional: list[Token] | None) -> list[Token]:
        """The special tokens without a name. `additional` are those of the vocabulary's file, before
        special_tokens_map.json."""
        if additional is None:
            additional = self.options.get(_ADDITIONAL)
        listed = self.options.get(_EXTRA, additional)
        return [_token(one) for one in listed or []]

    def flag(self, name: str, default: bool | None) -> Any:
        """A switch. null is a statement, too: some switches have a third state. Raises SetupError."""
        value = self.options.get(name, default)
        if value is not None and not isinstance(value, bool):
            raise SetupError(f"tokenizer_config.json: {name} is {short(value)}; it must be true or false")
        return value


def read(folder: Path) -> Stated:
    """Raises SetupError for a file that is broken; TypeError or ValueError for one that holds other kinds of values."""
    config, special_map, added_json = (read_json(folder / name) for name in FILES)
    options = {key: value for key, value in config.items() if key not in ("tokenizer_class", "added_tokens_decoder")}
    if _ADDITIONAL in options and not options.get(_EXTRA):
        options[_EXTRA] = options.pop(_ADDITIONAL)
    if "added_tokens_decoder" in config:
        added = {int(id): _token(token) for id, token in config["added_tokens_decoder"].items()}
    else:
        options |= {key: _special(value) for key, value in special_map.items() if key != _EXTRA}
        options |= _listed(options, special_map)
        added = _of_added_json(options, added_json)
    by_content = {str(token): token for token in added.values()}
    named = {key: _named(options.pop(key), by_content) for key in NAMED if key in options}
    return Stated(options, named, _own(options), added)


def _token(value: Any) -> Any:
    """A token of a JSON file. Raises TypeError."""
    if isinstance(value, dict):
        return AddedToken(**{key: of for key, of in value.items() if key != "__type"})
    if not isinstance(value, str | AddedToken):
        raise TypeError(f"{short(value)} is no token")
    return value


def _special(value: Any) -> Any:
    return _token({**value, "special": True}) if isinstance(value, dict) else value


def _named(value: Any, by_content: Mapping[str, AddedToken]) -> Token | None:
    if value is None:
        return None
    token: Token = _token(value)
    return by_content.get(str(token), token)


def _listed(options: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, Any]:
    """extra_special_tokens of both files."""
    listed = special_map.get(_EXTRA)
    if not isinstance(listed, list):
        return {} if listed is None else {_EXTRA: listed}
    return {_EXTRA: [*(options.get(_EXTRA) or []), *map(_special, listed)]}


def _of_added_json(options: Mapping[str, Any], content: Mapping[str, Any]) -> dict[int, AddedToken]:
    listed = options.get(_EXTRA)
    special = {str(_token(options[key])) for key in NAMED if options.get(key)}
    special |= {str(_token(one)) for one in (listed or [])} if not isinstance(listed, dict) else set()
    return {
        int(id): AddedToken(token, normalized=token not in special, special=token in special)
        for token, id in content.items()
    }


def _own(options: dict[str, Any]) -> dict[str, Token]:
    """The tokens of keys such as `image_token`, and those of a dictionary extra_special_tokens."""
    own = {key: _token(of) for key, of in options.items() if key.endswith("_token") and isinstance(of, str | dict)}
    if isinstance(options.get(_EXTRA), dict):
        own |= {key: _token(of) for key, of in options.pop(_EXTRA).items()}
    return own
