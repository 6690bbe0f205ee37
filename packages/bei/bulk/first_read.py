"""The first reading of an input, in a process with bounded memory: a file of a kilobyte can expand to gigabytes.

It returns the places of the parts that it could read. They are read again later without the bound.
"""

import json
import subprocess
import sys
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pyarrow as pa

from bei import processes
from bei.bulk.inputs import Input, scan, take_long_fields
from bei.bulk.rows import Part
from bei.errors import SetupError, one_line

MEMORY = 4 << 30
"""The most bytes that reading may take, besides the libraries."""


def first_read(place: Path, column: str, part_rows: int) -> Input:
    """The result of `inputs.scan`. Raises SetupError."""
    reader = processes.start(
        "bei.bulk.first_read", place, column, part_rows, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with reader:
        try:
            said, complaint = reader.communicate()
        finally:
            reader.kill()
    if reader.returncode < 0:
        raise SetupError(f"{place} ended its reader, which may take {MEMORY >> 30} GiB of memory: it asks for more")
    if reader.returncode:
        raise SetupError(f"{place} cannot be read: {one_line(complaint.decode(errors='replace')[-120:])}")
    answer = json.loads(said)
    if "refusal" in answer:
        raise SetupError(answer["refusal"])
    return _input(answer)


def _input(said: dict[str, Any]) -> Input:
    parts = tuple(Part(Path(file), *place) for file, *place in said["parts"])
    return Input(said["column"], pa.ipc.read_schema(pa.py_buffer(b64decode(said["schema"]))), parts, said["sha256"])


def _said(found: Input) -> dict[str, Any]:
    return {
        "column": found.column,
        "schema": b64encode(found.schema.serialize()).decode(),
        "parts": [[str(part.file), part.first, part.row_count, part.offset, part.size] for part in found.parts],
        "sha256": found.sha256,
    }


def _bound_memory() -> None:
    """Use the system's allocator: others reserve more than they use."""
    pa.set_memory_pool(pa.system_memory_pool())
    pa.set_cpu_count(1)
    processes.bound_memory(MEMORY)


def main(place: str, column: str, part_rows: str) -> None:
    """Writes the result, or the refusal, as JSON."""
    _bound_memory()
    take_long_fields()
    try:
        answer = _said(scan(Path(place), column, int(part_rows)))
    except SetupError as exc:
        answer = {"refusal": exc.message}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
