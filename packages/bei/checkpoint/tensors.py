"""Tensors of safetensors files, and of files of torch.save, under our names: checked first, read when they are used."""

import hashlib
import re
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from bei import files
from bei.checkpoint.mapped import MappedFile
from bei.errors import SetupError, one_line

if TYPE_CHECKING:
    from bei.checkpoint.torch_files import Located

_PICKLED = (".bin", ".pt")
"""Endings of the files of torch.save."""
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}
_KINDS = {dtype: kind for kind, dtype in _DTYPES.items()}
_FP8_MAX = 448.0
_SCALES = ("weight_scale", "input_scale", "output_scale", "k_scale", "v_scale")
"""Tensors stored beside a float8 weight. The last three are for caches, which encoders do not have."""
_HUBS_BLOB = re.compile(r"/models--[^/]+/blobs/([0-9a-f]{64})$")
"""A large file in the cache of huggingface_hub: snapshots/<commit>/<name> is a link to it."""
_CONTENT = (
    *("name", "start", "less", "step", "is_entry", "is_turned", "is_flat", "is_zero", "groups", "axes"),
    *("divisor", "shape"),
)
"""The fields of a Tensor that say what is read from its file."""


@dataclass(frozen=True)
class Tensor:
    """One tensor on disk, or rows of one from `start` on: its file, its name there, shape, and dtype (float32, float16,
    bfloat16, float8_e4m3fn; others as stored). Row `less` is subtracted from it, the tensor `plus` is added to each
    row, and it is divided by `divisor`, in float32. Of the rows every `step`-th one is read; with `is_entry` the row
    `start` alone, without its axis; with `is_turned` they are transposed after that. With `is_flat` the last
    two axes are one. With `is_zero` there are zeros in
    its place. With `groups` the order of the rows is another: seen as `groups`, they are transposed to the order
    `axes`. A float8 tensor is multiplied by `scale`, one number or one per row; `input_scale` is the divisor of its
    product's inputs. `rows_of` has the number of each row on disk. Each row is multiplied by its number in `factors`,
    in float32. `place` is where the tensor is in a file of torch.save; None in one of safetensors. `low_rank` is
    added to the whole tensor on disk."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int = 0
    less: int | None = None
    step: int = 1
    is_entry: bool = False
    is_turned: bool = False
    is_flat: bool = False
    is_zero: bool = False
    plus: "Tensor | None" = None
    divisor: float = 1.0
    groups: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()
    scale: "Tensor | None" = None
    input_scale: "Tensor | None" = None
    rows_of: "Tensor | None" = None
    factors: "Tensor | None" = None
    place: "Located | None" = None
    low_rank: "LowRank | None" = None

    @property
    def is_rearranged(self) -> bool:
        """Whether its rows are not those on disk, one after another."""
        return self.step > 1 or self.is_entry or self.is_turned or self.is_flat or bool(self.groups)

    def rows(self, start: int, stop: int, less: int | None = None, step: int = 1) -> "Tensor":
        """Every `step`-th row from `start` to `stop`, as far as there are any."""
        count = len(range(start, min(stop, self.shape[0]), step))
        return replace(self, shape=(count, *self.shape[1:]), start=start, less=less, step=step)

    def entry(self, index: int) -> "Tensor":
        """Row `index` without the first axis; a tensor without rows if there is no such row."""
        if not self.shape or index >= self.shape[0]:
            return replace(self, shape=(0,))
        return replace(self, shape=self.shape[1:], start=index, is_entry=True)

    def flat(self) -> "Tensor":
        """[..., a, b] → [..., a * b]; a tensor of fewer axes as it is."""
        if len(self.shape) < 2:
            return self
        return replace(self, shape=(*self.shape[:-2], self.shape[-2] * self.shape[-1]), is_flat=True)

    def transposed(self) -> "Tensor":
        """[a, b] → [b, a]"""
        return replace(self, shape=self.shape[::-1], is_turned=True)


@dataclass(frozen=True)
class LowRank:
    """scale * b @ a in float32, transposed if `is_turned`. a: [rank, inputs]; b: [outputs, rank]"""

    a: Tensor
    b: Tensor
    scale: float
    is_turned: bool


def scan(file: Path) -> dict[str, Tensor]:
    """Every tensor of a file by its own name. Raises SetupError for a file missing, truncated, or of another format
    than its name says."""
    try:
        return _located(file) if file.suffix in _PICKLED else _safetensors(file)
    except FileNotFoundError:
        raise SetupError(f"{file} is missing; download the checkpoint again") from None
    except (SafetensorError, OSError) as exc:
        raise SetupError(f"{file} is truncated or not safetensors ({one_line(exc)}); download it again") from None


def _safetensors(file: Path) -> dict[str, Tensor]:
    found = {}
    with safe_open(file, "numpy") as opened:
        for name in opened.keys():  # noqa: SIM118  not a mapping
            view = opened.get_slice(name)
            dtype = _DTYPES.get(view.get_dtype(), view.get_dtype())
            found[name] = Tensor(file, name, tuple(view.get_shape()), dtype)
    return found


def stored_kind(tensor: Tensor) -> str:
    """The type of its numbers on disk, as safetensors names it."""
    return _KINDS.get(tensor.dtype, tensor.dtype)


def _located(file: Path) -> dict[str, Tensor]:
    from bei.checkpoint import torch_files  # as few checkpoints need it as the builders of tokenizers

    return {
        name: Tensor(file, name, place.shape, _DTYPES.get(place.kind, place.kind), place=place)
        for name, place in torch_files.locate(file).items()
    }


class Tensors(Mapping[str, np.ndarray]):
    """Our name → array. Several stored parts are concatenated along the first axis on reading; as float32 if their
    types differ."""

    def __init__(self, parts: Mapping[str, tuple[Tensor, ...]]):
        self._parts = parts

    def __getitem__(self, name: str) -> np.ndarray:
        arrays = [_read(tensor) for tensor in self._parts[name]]
        if len({array.dtype for array in arrays}) > 1:
            arrays = [array.astype(np.float32) for array in arrays]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def pieces(self) -> "Pieces":
        """A reader that copies no more than it must."""
        return Pieces(self._parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def stored_bytes(self) -> int:
        """The size of the files of weights. Raises OSError."""
        return sum(file.stat().st_size for file in {part.file for parts in self._parts.values() for part in parts})

    @property
    def quantized_names(self) -> tuple[str, ...]:
        """Our names of the matrices all of whose parts are stored in float8."""
        return tuple(name for name, parts in self._parts.items() if all(part.scale for part in parts))

    def quantized(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """A matrix as stored: float8_e4m3fn[rows, columns], and float32[rows], the scale of each row; None for a matrix
        that is not stored in float8."""
        parts = self._parts[name]
        scales = [_scales(part, part.scale) for part in parts if part.scale]
        if len(scales) < len(parts):
            return None
        return np.concatenate([_stored(part) for part in parts]), np.concatenate(scales)

    def input_peak(self, name: str) -> float | None:
        """The largest absolute input of a matrix, if the checkpoint states it."""
        scales = [part.input_scale for part in self._parts[name]]
        known = [scale for scale in scales if scale is not None]
        return max(float(_stored(scale).max()) for scale in known) * _FP8_MAX if len(known) == len(scales) else None

    def fingerprint(self, notes: Path) -> str:
        """SHA-256 of the content of the files and of the names of the tensors. The hash of a file is kept in `notes`, a
        folder of the cache, for as long as the file system says that the file is the same."""
        places = {
            ours: [
                (part.file.name, part.plus and part.plus.name, _added(part), *(getattr(part, of) for of in _CONTENT))
                for part in parts
            ]
            for ours, parts in self._parts.items()
        }
        digest = hashlib.sha256(repr(sorted(places.items())).encode())
        for file in sorted({file for parts in self._parts.values() for part in parts for file in _files(part)}):
            digest.update(_content_hash(file, notes).encode())
        return digest.hexdigest()


class Pieces:
    """Reads the parts of our tensors, which follow one another along the first axis. They are read-only. Rows that are
    wanted as they are stored are mapped from the file, for as long as this or an array lives. Safe from several
    threads."""

    def __init__(self, parts: Mapping[str, tuple[Tensor, ...]]):
        self._parts, self._files = parts, cache(MappedFile)

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def __getitem__(self, name: str) -> list[np.ndarray]:
        return [self._read(part) for part in self._parts[name]]

    def exact(self, name: str) -> np.ndarray:
        """All of a tensor: float32."""
        return np.concatenate([np.atleast_1d(piece).astype(np.float32) for piece in self[name]])

    def content(self, name: str) -> Hashable:
        """Equal for tensors of one content."""
        return self._parts.get(name)

    def _read(self, part: Tensor) -> np.ndarray:
        as_stored = Tensor(part.file, part.name, part.shape, part.dtype, part.start)
        if part != as_stored or part.dtype not in _KINDS or not part.shape:
            return _read(part)
        return self._files(part.file)[part.name][part.start : part.start + part.shape[0]]


def _added(tensor: Tensor) -> tuple[Any, ...] | None:
    """The parts of the product that is added to a tensor, and how it is made."""
    of = tensor.low_rank
    parts = ((part.name, part.start, part.shape) for part in (of.a, of.b)) if of else ()
    return (*parts, of.scale, of.is_turned) if of else None


def _files(tensor: Tensor) -> set[Path]:
    of = tensor.low_rank
    return {tensor.file, *((of.a.file, of.b.file) if of else ())}


def with_scales(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the scales stored beside float8 weights (under modelopt's and compressed-tensors' names) moved
    into them. Raises SetupError for a format that is not read."""
    weights = {name.removesuffix(".weight"): name for name, tensor in stored.items() if tensor.dtype == "float8_e4m3fn"}
    scaled: dict[str, Tensor] = {}
    for module, name in weights.items():
        scale = stored.get(f"{module}.weight_scale")
        rows = stored[name].shape[0]
        if scale is None or int(np.prod(scale.shape)) not in (1, rows):
            raise SetupError(f"{name} is float8 with no scale for it or for each row: a format that is not read here")
        scaled[name] = replace(stored[name], scale=scale, input_scale=stored.get(f"{module}.input_scale"))
    beside = {f"{module}.{scale}" for module in weights for scale in _SCALES}
    return {name: scaled.get(name, tensor) for name, tensor in stored.items() if name not in beside}


def _read(tensor: Tensor) -> np.ndarray:
    """The value of a tensor, in its stored type or in float32."""
    if tensor.is_zero:
        return np.zeros(tensor.shape, np.float32)
    if tensor.divisor != 1:
        divided: np.ndarray = _read(replace(tensor, divisor=1.0)).astype(np.float32) / np.float32(tensor.divisor)
        return divided
    if tensor.plus is not None:
        sums: np.ndarray = _read(replace(tensor, plus=None)).astype(np.float32) + _read(tensor.plus)
        return sums
    if tensor.rows_of is not None or tensor.factors is not None:
        return _gathered(tensor)
    if tensor.groups:
        return _regrouped(tensor)
    rows = _stored(tensor)
    if tensor.scale is not None:
        rows = rows.astype(np.float32) * _scales(tensor, tensor.scale)[:, None]
    if tensor.less is None:
        return rows
    lessened: np.ndarray = rows.astype(np.float32) - _read(
        replace(tensor, start=tensor.less, less=None, shape=(1, *tensor.shape[1:]))
    )
    return lessened


def _gathered(tensor: Tensor) -> np.ndarray:
    """Raises SetupError for a row that the file does not have."""
    rows = _on_disk(tensor, None)
    if tensor.rows_of is not None:
        places = _stored(tensor.rows_of)
        if not np.issubdtype(places.dtype, np.integer) or places.min() < 0 or places.max() >= len(rows):
            raise SetupError(
                f"{tensor.file}: {tensor.rows_of.name} must be rows of {tensor.name}: 0 to {len(rows) - 1}"
            )
        rows = rows[places]
    return rows if tensor.factors is None else rows * _stored(tensor.factors).astype(np.float32)[:, None]


def _regrouped(tensor: Tensor) -> np.ndarray:
    stored = _read(replace(tensor, groups=()))
    inner = tuple(range(len(tensor.groups), len(tensor.groups) + stored.ndim - 1))
    seen = stored.reshape(*tensor.groups, *stored.shape[1:])
    regrouped: np.ndarray = seen.transpose(*tensor.axes, *inner).reshape(stored.shape)
    return regrouped


def _stored(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == "float8_e4m3fn" and tensor.place is None:
        return _float8_rows(tensor)
    if not tensor.shape:
        return _on_disk(tensor, None)
    if tensor.is_flat:
        whole = _on_disk(tensor, None).reshape(tensor.shape[::-1] if tensor.is_turned else tensor.shape)
        return whole.T if tensor.is_turned else whole
    rows = _on_disk(tensor, _stored_rows(tensor))
    rows = rows[0] if tensor.is_entry else rows[:: tensor.step]
    return rows.T if tensor.is_turned else rows


def _on_disk(tensor: Tensor, rows: slice | None) -> np.ndarray:
    """The stored tensor of this name, or rows of it, with the product that is added to it."""
    found = _in_file(tensor, rows)
    if tensor.low_rank is None:
        return found
    added = _product(tensor.low_rank)
    summed: np.ndarray = found.astype(np.float32) + (added if rows is None else added[rows])
    return summed


def _product(of: LowRank) -> np.ndarray:
    a, b = (_stored(part).astype(np.float32) for part in (of.a, of.b))
    product: np.ndarray = np.float32(of.scale) * (b @ a)
    return product.T if of.is_turned else product


def _in_file(tensor: Tensor, rows: slice | None) -> np.ndarray:
    if tensor.place is not None:
        from bei.checkpoint import torch_files

        return torch_files.read_rows(tensor.file, tensor.place, rows)
    with safe_open(tensor.file, "numpy") as opened:
        found: np.ndarray = opened.get_tensor(tensor.name) if rows is None else opened.get_slice(tensor.name)[rows]
    return found


def _stored_rows(tensor: Tensor) -> slice:
    """The rows of the stored tensor that hold the wanted ones."""
    count = 1 if tensor.is_entry else tensor.shape[-1 if tensor.is_turned else 0]
    return slice(tensor.start, tensor.start + (count - 1) * tensor.step + 1)


def _float8_rows(tensor: Tensor) -> np.ndarray:
    """float8 rows, which safetensors does not give numpy."""
    return MappedFile(tensor.file)[tensor.name][tensor.start : tensor.start + tensor.shape[0]].copy()


def _scales(tensor: Tensor, scale: Tensor) -> np.ndarray:
    """float32[rows], from the tensor of the scale."""
    scales = _stored(scale).astype(np.float32).reshape(-1)
    return scales.repeat(tensor.shape[0]) if len(scales) == 1 else scales[tensor.start : tensor.start + tensor.shape[0]]


def _content_hash(file: Path, notes: Path) -> str:
    """The hash of a file, by which the hub's cache names it, or kept by its ctime: writing the file or replacing it
    changes that."""
    if named := _HUBS_BLOB.search(file.resolve().as_posix()):
        return named[1]
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
