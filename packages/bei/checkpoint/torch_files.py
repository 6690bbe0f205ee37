"""Where the tensors of a file of torch.save lie (pytorch_model.bin, *.pt), without torch: its pickle is read as data,
and of the numbers only places are taken. Both formats are known, the zip file and the older one."""

import io
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from bei.checkpoint import pickles, stored_zip
from bei.checkpoint.pickles import Storage, Strided, read_pickle
from bei.checkpoint.stored_zip import Place
from bei.errors import SetupError, one_line

_NUMPY: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
        **{"F8_E4M3": ml_dtypes.float8_e4m3fn, "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
        **{"U8": np.uint8, "BOOL": np.bool_},
    }.items()
}
_ZIP, _OLD_MARK, _OLD_VERSION = b"PK\3\4", 0x1950A86A20F9469CFC6C, 1001
_OLD_HEADS = 3  # pickles before that of the tensors: a mark, a version, facts of the machine
_MOST_SHARED = 4  # times that the bytes of a file may be those of a tensor: T5's embeddings have four names
_REMEDY = "nothing of it was run. Save the model as safetensors (save_pretrained) where you trust the file"


@dataclass(frozen=True)
class Located:
    """A tensor in a file: the type of its numbers as safetensors names it, its shape, the place of its first number in
    bytes, and its strides in numbers."""

    kind: str
    shape: tuple[int, ...]
    start: int
    strides: tuple[int, ...]


def locate(file: Path) -> dict[str, Located]:
    """Every tensor of the dictionary that the file holds. Raises SetupError for a file that torch.save did not write,
    that is truncated, or that holds other things than tensors and dictionaries; FileNotFoundError."""
    with file.open("rb") as opened:
        try:
            found = _zipped(opened) if opened.read(4) == _ZIP else _old(opened)
        except SetupError as exc:
            raise SetupError(f"{file}: its pickle {exc}; {_REMEDY}") from None
        except (ValueError, LookupError, TypeError, struct.error) as exc:
            raise SetupError(
                f"{file} is truncated or no file of torch.save ({one_line(exc)}); download it again"
            ) from None
    if not found:
        raise SetupError(f"{file} holds no dictionary of tensors; is it the model's?")
    return found


def item_bytes(kind: str) -> int:
    """The bytes of one number of a type, as safetensors names it."""
    return _NUMPY[kind].itemsize


def read_rows(file: Path, tensor: Located, rows: slice | None) -> np.ndarray:
    """Rows of a tensor, or all of it. Only the part of its storage is read that these are in."""
    kind, start, shape = _NUMPY[tensor.kind], tensor.start, tensor.shape
    if rows is not None:
        taken = range(*rows.indices(shape[0]))
        start, shape = start + taken.start * tensor.strides[0] * kind.itemsize, (len(taken), *shape[1:])
    if 0 in shape:
        return np.empty(shape, kind)
    count = 1 + sum((many - 1) * stride for many, stride in zip(shape, tensor.strides, strict=True))
    stored = np.fromfile(file, kind, count, offset=start)
    if len(stored) < count:
        raise SetupError(f"{file} was cut off while it was read")
    strides = [stride * kind.itemsize for stride in tensor.strides]
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(stored, shape, strides)).reshape(shape)


def _zipped(file: IO[bytes]) -> dict[str, Located]:
    places = stored_zip.entries(file)
    (pickle,) = (name for name in places if name.rpartition("/")[2] == "data.pkl")
    root = pickle.removesuffix("data.pkl")
    if (order := places.get(f"{root}byteorder")) and _content(file, order) != b"little":
        raise ValueError("its numbers are not little-endian")
    value = read_pickle(io.BytesIO(_content(file, places[pickle])), {})
    return _located(value, {name.removeprefix(f"{root}data/"): place for name, place in places.items()}, file)


def _content(file: IO[bytes], place: Place) -> bytes:
    if place.size > pickles.MAX_BYTES:
        raise SetupError(f"has more than {pickles.MAX_BYTES} bytes, the most that are read")
    file.seek(place.start)
    return file.read(place.size)


def _old(file: IO[bytes]) -> dict[str, Located]:
    """torch's format before 1.6: pickles, then each storage, its count before its numbers."""
    file.seek(0)
    head = io.BytesIO(file.read(pickles.MAX_BYTES))
    storages: dict[str, Storage] = {}
    mark, version, machine = (read_pickle(head, {}) for _ in range(_OLD_HEADS))
    if (mark, version, machine["little_endian"]) != (_OLD_MARK, _OLD_VERSION, True):
        raise ValueError("another format")
    value, keys = read_pickle(head, storages), read_pickle(head, {})
    return _located(value, _old_places(file, head.tell(), [storages[key] for key in keys]), file)


def _old_places(file: IO[bytes], start: int, storages: list[Storage]) -> dict[str, Place]:
    places, length = {}, file.seek(0, 2)
    for storage in storages:
        file.seek(min(start, length))
        if struct.unpack("<q", file.read(8)) != (storage.count,):
            raise ValueError("a storage has another size")
        places[storage.key] = Place(start + 8, storage.count * _NUMPY[storage.kind].itemsize)
        start = sum(places[storage.key])
    return places


def _tensors(value: object) -> dict[str, Strided]:
    """The tensors at the top. Anything else there is no weight."""
    if not isinstance(value, dict):
        return {}
    return {name: of for name, of in value.items() if isinstance(name, str) and isinstance(of, Strided)}


def _located(value: object, places: Mapping[str, Place], file: IO[bytes]) -> dict[str, Located]:
    length, all_bytes = file.seek(0, 2), 0
    found = {}
    for name, tensor in _tensors(value).items():
        place, size = places[tensor.storage.key], _NUMPY[tensor.kind].itemsize
        _check(tensor, tensor.storage, place, length)
        all_bytes += math.prod(tensor.shape) * size
        found[name] = Located(tensor.kind, tensor.shape, place.start + tensor.offset * size, tensor.strides)
    if all_bytes > _MOST_SHARED * length:
        raise ValueError(f"its tensors are {all_bytes} bytes, in a file of {length}")
    return found


def _check(tensor: Strided, storage: Storage, place: Place, length: int) -> None:
    """Raises ValueError for numbers outside of the storage, or of the file, or of which one is several."""
    size, count = _NUMPY[tensor.kind].itemsize, math.prod(tensor.shape)
    steps = zip(tensor.shape, tensor.strides, strict=True)
    end = tensor.offset + 1 + sum((many - 1) * stride for many, stride in steps) if count else tensor.offset
    within = min(storage.count * _NUMPY[storage.kind].itemsize, place.size)
    if max(end, count) * size > within or place.start + place.size > length:
        raise ValueError(f"a tensor of shape {tensor.shape} is larger than what is stored of it")
