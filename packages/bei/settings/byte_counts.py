"""Numbers of bytes, with or without a unit: 2000000000, 2GB, 512 MiB."""

import re
from typing import Any

_COUNT = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*(?:([kmgt])(i?)b?|b?)", re.IGNORECASE)


def to_bytes(value: Any) -> Any:
    """The number of bytes that a text says; other values unchanged. Raises ValueError."""
    if not isinstance(value, str):
        return value
    found = _COUNT.fullmatch(value.strip())
    if found is None or ("." in found[1] and not found[2]):
        raise ValueError("a number of bytes is such as 2000000000, 2GB or 512MiB")
    if not found[2]:
        return int(found[1])
    return round(float(found[1]) * (1024 if found[3] else 1000) ** (1 + "kmgt".index(found[2].lower())))
