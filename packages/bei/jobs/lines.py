"""The lines of a job's input: JSON objects with `custom_id`, `method`, `url` and `body`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bei.errors import Error, one_line, short
from bei.jobs.records import Fault

MOST_LINES = 50_000
"""OpenAI's own limit of a job."""
LONGEST = 1 << 22
"""The most bytes of a line. As one body of JSON it takes about 10 ms, in which no other thread runs."""
_MOST_FAULTS = 100
_LONGEST_ID = 512
_FIELDS = ("custom_id", "method", "url", "body")


class Refused(Error):
    """Of a line, or of a whole input."""

    def __init__(self, fault: Fault):
        super().__init__(fault.message)
        self.fault = fault


@dataclass(frozen=True)
class Line:
    """A request. `number` counts from 1, `end` is the offset of the next line. `texts` is about the number of texts in
    the body, which is JSON."""

    number: int
    end: int
    custom_id: str
    body: bytes
    texts: int


def parsed(raw: bytes, number: int, end: int, endpoint: str) -> Line:
    """Raises Refused."""
    found = _object(raw, number)
    custom_id, method, url, body = (found[name] for name in _FIELDS)
    is_name = isinstance(custom_id, str) and 0 < len(custom_id) <= _LONGEST_ID
    for name, is_right, code, rule in (
        ("custom_id", is_name, "invalid_custom_id", f"a string of 1 to {_LONGEST_ID} letters"),
        ("method", method == "POST", "invalid_method", "POST"),
        ("url", url == endpoint, "mismatched_url", f"the batch's endpoint, {endpoint}"),
        ("body", isinstance(body, dict), "invalid_body", "an object"),
    ):
        if not is_right:
            raise _refused(number, code, f"`{name}` must be {rule}, not {short(found[name])}", name)
    return Line(number, end, custom_id, orjson.dumps(body), _texts(body))


def _object(raw: bytes, number: int) -> dict[str, Any]:
    """The object of a line, which has all fields."""
    if len(raw) > LONGEST:
        raise _refused(number, "line_too_long", f"the line has more than {LONGEST} bytes; cut it in several")
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise _refused(number, "invalid_json_line", f"the line is not JSON: {one_line(exc)}") from None
    if not isinstance(found, dict):
        raise _refused(number, "invalid_json_line", "the line is not a JSON object")
    missing = next((name for name in _FIELDS if found.get(name) is None), None)
    if missing is not None:
        raise _refused(number, "missing_required_parameter", f"`{missing}` is required", missing)
    return found


def _refused(number: int, code: str, message: str, param: str | None = None) -> Refused:
    return Refused(Fault(code=code, message=message, line=number, param=param))


def _texts(body: dict[str, Any]) -> int:
    return max((len(value) for value in body.values() if isinstance(value, list)), default=1)


def read(file: Path, offset: int = 0, number: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """The lines after `number` ones, which end at `offset`: bytes, number and end of each that is not blank. Of one
    that is too long only the beginning. Raises OSError."""
    with file.open("rb") as opened:
        opened.seek(offset)
        while raw := opened.readline(LONGEST + 1):
            number += 1
            rest = raw
            while not rest.endswith(b"\n") and (rest := opened.readline(LONGEST)):
                pass
            if raw.strip():
                yield raw, number, opened.tell()


def check(file: Path, endpoint: str) -> tuple[int, list[Fault]]:
    """The number of lines, and the first faults among them. Raises OSError."""
    faults: list[Fault] = []
    first: dict[bytes, int] = {}
    count = 0
    for raw, number, end in read(file):
        count += 1
        if count > MOST_LINES:
            faults.append(Fault(code="too_many_lines", message=f"a batch has at most {MOST_LINES} lines"))
            break
        try:
            line = parsed(raw, number, end, endpoint)
        except Refused as refused:
            faults.append(refused.fault)
        else:
            known = first.setdefault(hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest(), number)
            if known != number:
                message = f"`custom_id` {short(line.custom_id)} is that of line {known}"
                faults.append(Fault(code="duplicate_custom_id", message=message, line=number, param="custom_id"))
        if len(faults) == _MOST_FAULTS:
            break
    if not count:
        faults.append(Fault(code="empty_file", message="the input file has no lines"))
    return count, faults
