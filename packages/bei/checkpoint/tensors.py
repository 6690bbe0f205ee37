"""Tensors of safetensors files under our names, read when asked for and checked before."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from bei import files
from bei.errors import SetupError, one_line

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}
_FP8_MAX = 448.0
_SCALES = ("weight_scale", "input_scale", "output_scale", "k_scale", "v_scale")
"""Stored beside a float8 weight; the last three are for caches, which encoders do not have."""


@dataclass(frozen=True)
class Tensor:
    """One tensor on disk, or rows of one from `start` on: its file, its name there, shape, and dtype (float32, float16,
    bfloat16, float8_e4m3fn; others as stored). `less` is a row of it that is subtracted, and `divisor` divides it, in
    float32. A float8 one is worth what is stored times `scale`, one number or one a row; `input_scale` is what its
    product's inputs are divided by."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int = 0
    less: int | None = None
    divisor: float = 1.0
    scale: "Tensor | None" = None
    input_scale: "Tensor | None" = None

    def rows(self, start: int, stop: int, less: int | None = None) -> "Tensor":
        """Those of [start, stop) that it has."""
        count = max(0, min(stop, self.shape[0]) - start)
        return replace(self, shape=(count, *self.shape[1:]), start=start, less=less)


def scan(files: list[Path]) -> dict[str, Tensor]:
    """Every tensor of `files` by its own name. Raises SetupError for a file missing, truncated or not safetensors."""
    found = {}
    for file in files:
        try:
            with safe_open(file, "numpy") as opened:
                for name in opened.keys():  # noqa: SIM118  not a mapping
                    view = opened.get_slice(name)
                    dtype = _DTYPES.get(view.get_dtype(), view.get_dtype())
                    found[name] = Tensor(file, name, tuple(view.get_shape()), dtype)
        except FileNotFoundError:
            raise SetupError(f"{file} is missing; download the checkpoint again") from None
        except (SafetensorError, OSError) as exc:
            raise SetupError(f"{file} is truncated or not safetensors ({one_line(exc)}); download it again") from None
    return found


class Tensors(Mapping[str, np.ndarray]):
    """Our name → array. Several stored parts are concatenated along the first axis on reading, as float32 where their
    types differ."""

    def __init__(self, parts: Mapping[str, tuple[Tensor, ...]]):
        self._parts = parts

    def __getitem__(self, name: str) -> np.ndarray:
        arrays = [_read(tensor) for tensor in self._parts[name]]
        if len({array.dtype for array in arrays}) > 1:
            arrays = [array.astype(np.float32) for array in arrays]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def quantized_names(self) -> tuple[str, ...]:
        """Ours of the matrices that are stored in float8, every part of them."""
        return tuple(name for name, parts in self._parts.items() if all(part.scale for part in parts))

    def quantized(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """A matrix as it is stored: float8_e4m3fn[rows, columns], and float32[rows], the scale of each; None for one
        that is not stored so."""
        parts = self._parts[name]
        scales = [_scales(part, part.scale) for part in parts if part.scale]
        if len(scales) < len(parts):
            return None
        return np.concatenate([_stored(part) for part in parts]), np.concatenate(scales)

    def input_peak(self, name: str) -> float | None:
        """The largest size of a matrix's inputs, where its checkpoint states it."""
        scales = [part.input_scale for part in self._parts[name]]
        known = [scale for scale in scales if scale is not None]
        return max(float(_stored(scale).max()) for scale in known) * _FP8_MAX if len(known) == len(scales) else None

    def fingerprint(self, notes: Path) -> str:
        """SHA-256 of all that is read: the files' content, and which tensor is which. A file is hashed once; `notes`
        is a folder of the cache that keeps its hash for as long as the file system says that it is the same file."""
        places = {
            ours: [(part.file.name, part.name, part.start, part.less, part.divisor, part.shape) for part in parts]
            for ours, parts in self._parts.items()
        }
        digest = hashlib.sha256(repr(sorted(places.items())).encode())
        for file in sorted({part.file for parts in self._parts.values() for part in parts}):
            digest.update(_content_hash(file, notes).encode())
        return digest.hexdigest()


def with_scales(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same without the scales beside float8 weights (modelopt's and compressed-tensors' names), which their weights
    have then. Raises SetupError for a format that is not read."""
    weights = {name.removesuffix(".weight"): name for name, tensor in stored.items() if tensor.dtype == "float8_e4m3fn"}
    for module, name in weights.items():
        scale = stored.get(f"{module}.weight_scale")
        rows = stored[name].shape[0]
        if scale is None or int(np.prod(scale.shape)) not in (1, rows):
            raise SetupError(f"{name} is float8 with no scale for it or for each row: a format that is not read here")
        stored = {**stored, name: replace(stored[name], scale=scale, input_scale=stored.get(f"{module}.input_scale"))}
    beside = {f"{module}.{scale}" for module in weights for scale in _SCALES}
    return {name: tensor for name, tensor in stored.items() if name not in beside}


def _read(tensor: Tensor) -> np.ndarray:
    """Its worth: in the type that it is stored in, or float32."""
    if tensor.divisor != 1:
        divided: np.ndarray = _read(replace(tensor, divisor=1.0)).astype(np.float32) / np.float32(tensor.divisor)
        return divided
    rows = _stored(tensor)
    if tensor.scale is not None:
        rows = rows.astype(np.float32) * _scales(tensor, tensor.scale)[:, None]
    if tensor.less is None:
        return rows
    lessened: np.ndarray = rows.astype(np.float32) - _read(
        replace(tensor, start=tensor.less, less=None, shape=(1, *tensor.shape[1:]))
    )
    return lessened


def _stored(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == "float8_e4m3fn":
        return _float8_rows(tensor)
    with safe_open(tensor.file, "numpy") as opened:
        rows: np.ndarray = (
            opened.get_slice(tensor.name)[tensor.start : tensor.start + tensor.shape[0]]
            if tensor.shape
            else opened.get_tensor(tensor.name)
        )
        return rows


def _float8_rows(tensor: Tensor) -> np.ndarray:
    """safetensors gives numpy none of this type. Its file: the header's size, 8 bytes; the header, JSON; the data."""
    with tensor.file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        first, _ = json.loads(opened.read(size))[tensor.name]["data_offsets"]
        row = int(np.prod(tensor.shape[1:]))
        opened.seek(8 + size + first + tensor.start * row)
        return np.fromfile(opened, ml_dtypes.float8_e4m3fn, tensor.shape[0] * row).reshape(tensor.shape)


def _scales(tensor: Tensor, scale: Tensor) -> np.ndarray:
    """float32[rows], from the tensor of its scale."""
    scales = _stored(scale).astype(np.float32).reshape(-1)
    return scales.repeat(tensor.shape[0]) if len(scales) == 1 else scales[tensor.start : tensor.start + tensor.shape[0]]


def _content_hash(file: Path, notes: Path) -> str:
    """Noted by what changes with the content: writing a file, or putting another in its place, changes its ctime."""
    stat = file.stat()
    identity = (str(file.resolve()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    note = notes / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:32]}.sha256"
    with files.opened(note) as kept:
        if kept:
            return kept.read().decode()
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    with suppress(OSError):  # a folder that nobody may write to costs a second look at the file, no more
        files.make_folder(notes)
        with files.replacing(note) as unfinished:
            unfinished.write_text(found)
    return found
