"""A checkpoint with LoRA adapters for several tasks in its weights (jina-embeddings-v3, arXiv:2409.10173): a setting
names the one that is served."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bei.checkpoint.tensors import LowRank, Tensor
from bei.errors import SetupError, short

_ORIGINAL = ".parametrizations.weight.original"
_NONE = "none"


@dataclass(frozen=True)
class TaskAdapter:
    """The name of a task, or `none`; its index among all, or None for the weights without an adapter; the rank, and the
    product's scale."""

    name: str
    index: int | None
    rank: int
    scale: float


def chosen(config: Mapping[str, Any], setting: str | None) -> TaskAdapter | None:
    """The adapter that the setting names among config.json's `lora_adaptations`; None for a checkpoint without them.
    Raises SetupError if it names none of them."""
    names = config.get("lora_adaptations")
    if names is None:
        if setting is not None:
            raise SetupError(
                f"BEI_TASK_ADAPTER is {short(setting)}, but the checkpoint has no task adapters; remove it"
            )
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise SetupError(f"config.json: lora_adaptations must be a list of names, not {short(names)}")
    if setting not in (*names, _NONE):
        wanted = "the checkpoint has an adapter for each task" if setting is None else f"{short(setting)} is no task"
        listed = ", ".join(short(name) for name in names)
        raise SetupError(f"{wanted}: set BEI_TASK_ADAPTER to one of {listed}, or to none for the weights without one")
    rank, alpha = (config.get(key, default) for key, default in (("lora_rank", 4), ("lora_alpha", 1)))
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise SetupError("config.json: lora_rank and lora_alpha must be numbers of at least 1")
    return TaskAdapter(str(setting), None if setting == _NONE else names.index(setting), rank, alpha / rank)


def merged(stored: Mapping[str, Tensor], adapter: TaskAdapter) -> dict[str, Tensor]:
    """The tensors with the task's products in them, under the names that they have without adapters. Raises SetupError
    for matrices that do not fit."""
    found = {name: tensor for name, tensor in stored.items() if ".parametrizations.weight." not in name}
    for name, tensor in stored.items():
        if name.endswith(_ORIGINAL):
            module = name.removesuffix(_ORIGINAL)
            sides = [stored.get(f"{module}.parametrizations.weight.0.lora_{side}") for side in "AB"]
            found[f"{module}.weight"] = _with_product(name, tensor, sides, adapter)
    return found


def _with_product(name: str, base: Tensor, sides: list[Tensor | None], adapter: TaskAdapter) -> Tensor:
    """A linear layer has A [tasks, rank, inputs] and B [tasks, outputs, rank]. Of an embedding A is [tasks, rows, rank]
    and B [tasks, rank, columns]."""
    if adapter.index is None:
        return base
    a, b = (None if side is None or len(side.shape) != 3 else side.entry(adapter.index) for side in sides)
    rows, columns = base.shape if len(base.shape) == 2 else (0, 0)
    shapes = ((adapter.rank, columns), (rows, adapter.rank))
    if a is not None and b is not None and (a.shape, b.shape) == shapes[::-1]:
        a, b = b, a
    if a is None or b is None or (a.shape, b.shape) != shapes or base.scale is not None:
        raise SetupError(f"{base.file}: the adapters of {short(name)} do not fit it; download the checkpoint again")
    return replace(base, low_rank=LowRank(a, b, adapter.scale, is_turned=False), dtype="float32")
