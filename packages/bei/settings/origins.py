"""Origins of pages that may read answers."""

import re
from typing import Any

from bei.errors import short

Origins = tuple[str, ...]
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/,?#@]+")  # as browsers send it: RFC 6454, section 6.2


def split_origins(value: Any) -> Any:
    """One origin, or several separated by commas or in a list; `*` is any. Raises ValueError for a value that no
    browser sends."""
    given = value.split(",") if isinstance(value, str) else value
    origins = tuple(part.strip().lower() for item in given for part in item.split(","))
    wrong = next((origin for origin in origins if not _ORIGIN.fullmatch(origin)), None)
    if wrong is not None:
        raise ValueError(
            f"an origin is such as https://example.com:8443, without a path, or * for any; {short(wrong)} is none"
        )
    return origins
