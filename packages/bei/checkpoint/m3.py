"""The two other heads of BGE-M3 (arXiv:2402.03216, §3.1), in files beside its encoder's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bei.checkpoint.modules import special_token
from bei.checkpoint.tensors import Tensors, scan
from bei.errors import SetupError

_UNUSED = ("cls_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class Projection:
    """x @ weight.T + bias. weight: float32[outputs, hidden]; bias: float32[outputs]."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, states: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = states @ self.weight.T + self.bias
        return outputs


@dataclass(frozen=True)
class M3:
    """`sparse` gives each token its weight, `colbert` its vector; tokens of `unused` have weight 0."""

    sparse: Projection
    colbert: Projection
    unused: tuple[str, ...]


def read_m3(folder: Path, hidden_size: int) -> M3 | None:
    """None for a model without the heads. Raises SetupError for heads that do not fit."""
    files = [_file(folder, name) for name in ("sparse", "colbert")]
    if not all(file.exists() for file in files):
        return None
    sparse, colbert = (_projection(file, hidden_size) for file in files)
    if len(sparse.weight) != 1:
        raise SetupError(f"{files[0]}: weight has {len(sparse.weight)} rows, not 1")
    return M3(sparse, colbert, tuple(filter(None, (special_token(folder, name) for name in _UNUSED))))


def _file(folder: Path, name: str) -> Path:
    """BAAI publishes `.pt`; safetensors beside it are preferred."""
    safe, pickle = (folder / f"{name}_linear.{kind}" for kind in ("safetensors", "pt"))
    return pickle if pickle.exists() and not safe.exists() else safe


def _projection(file: Path, hidden_size: int) -> Projection:
    found = scan(file)
    if found.keys() != {"weight", "bias"} or found["weight"].shape[1:] != (hidden_size,):
        raise SetupError(f"{file} must hold weight [outputs, {hidden_size}] and bias, nothing else")
    tensors = Tensors({name: (tensor,) for name, tensor in found.items()})
    return Projection(*(tensors[name].astype(np.float32) for name in ("weight", "bias")))
