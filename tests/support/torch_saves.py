"""Files as torch.save writes them, with any pickle inside."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

STATE = OrderedDict(
    {"a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}
)


def saved(value: object = STATE, *, old: bool = False, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not old, **options)
    return buffer.getvalue()


def zipped(content: bytes, storages: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file with `content` as the pickle, and storages by their keys."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as out:
        out.writestr("archive/data.pkl", content)
        for key, numbers in (storages or {"0": bytes(64)}).items():
            out.writestr(f"archive/data/{key}", numbers)
    return buffer.getvalue()


def old(content: bytes, keys: tuple[str, ...] = ("0",), numbers: bytes = bytes(64)) -> bytes:
    """The format before torch 1.6, with `content` as the pickle, and one storage of floats."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    heads = [pickle.dumps(of, 2) for of in (0x1950A86A20F9469CFC6C, 1001, machine)]
    return b"".join([*heads, content, pickle.dumps(list(keys), 2), struct.pack("<q", len(numbers) // 4), numbers])


def named(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(count: int = 16, key: str = "0", kind: str = "torch.FloatStorage") -> bytes:
    return b"(" + text("storage") + named(kind) + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(offset: int = 0, shape: bytes = numbers(4), strides: bytes = numbers(1), of: bytes = storage()) -> bytes:
    """The steps that make a tensor."""
    return named("torch._utils._rebuild_tensor_v2") + b"(" + of + number(offset) + shape + strides + b"\x89Nt" + b"R"


def dictionary(value: bytes, name: bytes = text("a")) -> bytes:
    """A pickle of {"a": value}."""
    return b"\x80\2}(" + name + value + b"u."


def write(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file
