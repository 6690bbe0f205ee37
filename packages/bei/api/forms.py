"""Multipart forms with one file, parsed while they come (RFC 7578)."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from bei.api.call import Call
from bei.errors import Invalid, Malformed, UnsupportedMediaType, one_line, short
from bei.jobs.store import Upload

_AT_ONCE = 1 << 18  # bytes that a thread parses and writes
_MOST_FIELDS, _LONGEST_FIELD = 16, 1024  # beside the file; in bytes


@dataclass
class Form:
    """The fields of a form by name, and the name of its file; its content is in `upload`."""

    upload: Upload
    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


class _Parts:
    """The parts of a form: one is the file, the others are short."""

    def __init__(self, form: Form):
        self._form = form
        self._header, self._value = b"", b""
        self._name, self._is_file, self._content = "", False, b""
        self.is_whole = False

    def on_part_begin(self) -> None:
        self._name, self._is_file, self._content = "", False, b""
        if len(self._form.fields) >= _MOST_FIELDS:
            raise Invalid(f"the form has more than {_MOST_FIELDS} fields")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._begin(parse_options_header(self._value)[1])
        self._header, self._value = b"", b""

    def _begin(self, options: Mapping[bytes, bytes]) -> None:
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._is_file = b"filename" in options
        if not self._is_file:
            return
        if self._name != "file" or self._form.filename is not None:
            raise Invalid(f"the form has a second file, {short(self._name)}; send one, as `file`", param=self._name)
        self._form.filename = options[b"filename"].decode(errors="replace")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            return self._form.upload.write(data[start:end])
        self._content += data[start:end]
        if len(self._content) > _LONGEST_FIELD:
            raise Invalid(f"`{one_line(self._name)}` has more than {_LONGEST_FIELD} bytes", param=self._name)

    def on_part_end(self) -> None:
        if not self._is_file:
            self._form.fields[self._name] = self._content.decode(errors="replace")

    def on_end(self) -> None:
        self.is_whole = True


async def read(call: Call, upload: Upload) -> Form:
    """The form of a call. Raises UnsupportedMediaType, Malformed, Invalid, and the errors of the call's stream and of
    the upload."""
    kind, options = parse_options_header(call.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise UnsupportedMediaType(f"content-type {short(kind.decode(errors='replace'))}: send multipart/form-data")
    form = Form(upload)
    parts = _Parts(form)
    calls = {name: getattr(parts, name) for name in dir(parts) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, calls)  # type: ignore[arg-type]  # the names are those of its callbacks
        waiting = bytearray()
        async for part in call.parts():
            waiting += part
            if len(waiting) >= _AT_ONCE:
                await asyncio.to_thread(parser.write, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(parser.write, bytes(waiting))
    except FormParserError as exc:
        raise Malformed(f"the form cannot be read: {one_line(exc)}") from None
    if not parts.is_whole:
        raise Malformed("the form ends before its last boundary")
    return form
