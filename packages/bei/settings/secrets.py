"""API keys, and addresses without the secrets that they may contain."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from bei.errors import SetupError, why

Keys = tuple[SecretStr, ...]
_KEY = re.compile(r"[!-+\--~]+")  # printable ASCII without blanks and commas, as a header can carry (RFC 6750, §2.1)


def split_keys(value: Any) -> Any:
    """Keys from texts with one key, or several separated by commas. Raises ValueError, without quoting it, for a text
    that cannot be a key."""
    if not isinstance(value, str | tuple):
        return value
    given = (value,) if isinstance(value, str) else value
    keys = [part.strip() for text in given for part in _text(text).split(",")]
    if not all(map(_KEY.fullmatch, keys)):
        raise ValueError("a key is printable ASCII without blanks and not empty; separate several by commas")
    return tuple(map(SecretStr, keys))


def split_names(value: Any) -> Any:
    """Names from texts with one name, or several separated by commas."""
    texts = (value,) if isinstance(value, str) else value
    return tuple(part.strip() for text in texts for part in text.split(","))


def _text(key: str | SecretStr) -> str:
    return key.get_secret_value() if isinstance(key, SecretStr) else key


def keys_of(*ways: Mapping[str, Any]) -> tuple[str | SecretStr, ...]:
    """The keys from all sources of settings: none replaces another's, so the keys of all clients stay valid. Raises
    SetupError for a file."""
    files = [key for way in ways if way.get("api_key_file") for key in _keys_of_file(Path(way["api_key_file"]))]
    return *(way["api_key"] for way in ways if "api_key" in way), *files


def _keys_of_file(path: Path) -> Keys:
    """One key per line; empty lines and lines that begin with # are skipped. Raises SetupError."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except OSError as exc:
        raise SetupError(f"setting api_key_file: {path}: {why(exc)}") from None
    except ValueError:
        raise SetupError(f"setting api_key_file: {path} is not text") from None
    keys = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    wrong = next((number for number, key in keys if not _KEY.fullmatch(key)), None)
    if wrong is not None:
        raise SetupError(
            f"setting api_key_file: {path}, line {wrong}: a key is printable ASCII without blanks and commas"
        )
    if not keys:
        raise SetupError(f"setting api_key_file: {path} has no key, so nobody could get in; write one per line")
    return tuple(SecretStr(key) for _, key in keys)


def without_secrets(text: str) -> str:
    """An address without its user, query and fragment (a signed address has its signature there); other text
    unchanged."""
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return text.partition("://")[0] + "://..."
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
