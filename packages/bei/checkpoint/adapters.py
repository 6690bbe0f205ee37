"""LoRA adapters of peft (arXiv:2106.09685): products of two small matrices, added to weights while these are read."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bei.checkpoint.modules import read_json
from bei.checkpoint.tensors import LowRank, Tensor, scan
from bei.errors import SetupError, short

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PART = re.compile(r"(?P<module>.*)\.lora_(?P<side>embedding_A|embedding_B|A|B)(\.weight)?")
_PLAIN = re.compile(r"\^?[\w.]+")
_LONGEST = 1024  # characters of the name of a base
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it is."""
_REFUSED = {
    "use_dora": "DoRA is not read; merge it with peft: merge_and_unload(), then save_pretrained()",
    "lora_bias": "biases of an adapter's own are not read; merge it with peft: merge_and_unload()",
    "use_qalora": "QALoRA is not read; merge it with peft: merge_and_unload()",
    "layer_replication": "layers that are replicated are not read",
    "trainable_token_indices": "tokens that are trained alone are not read; merge it with peft: merge_and_unload()",
    "target_parameters": "adapters of experts are not read; merge it with peft: merge_and_unload()",
    "alora_invocation_tokens": "an adapter that begins at a token is not read",
}
_HEADS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}


@dataclass(frozen=True)
class Adapter:
    """Its tensors by their modules' names in the base: pairs of matrices, and whole tensors in place of the base's."""

    folder: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, Mapping[str, Tensor]]
    whole: Mapping[str, Tensor]

    def merged(self, stored: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
        """The tensors of the base by their names without the family's prefix, with the adapter's in them. Raises
        SetupError for a pair that fits no matrix of the base."""
        found = {**stored, **{_bare(name, prefixes): tensor for name, tensor in self.whole.items()}}
        for module, pair in self.pairs.items():
            name = f"{_bare(module, prefixes)}.weight"
            if name not in stored:
                raise SetupError(f"{self.folder / CONFIG}: the base has no {short(name)}; is it the adapter's base?")
            found[name] = replace(found[name], low_rank=self._product(module, pair, found[name]), dtype="float32")
        return found

    def _product(self, module: str, pair: Mapping[str, Tensor], base: Tensor) -> LowRank:
        is_embedding = "embedding_A" in pair
        a, b = (pair.get(f"{'embedding_' if is_embedding else ''}{side}") for side in "AB")
        if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or not 0 < a.shape[0] == b.shape[1]:
            raise SetupError(f"{self.folder}: {short(module)} needs lora_A [rank, inputs] and lora_B [outputs, rank]")
        shape, turned = (b.shape[0], a.shape[1]), (a.shape[1], b.shape[0])
        is_turned = base.shape != shape or (shape == turned and (is_embedding or bool(self.config["fan_in_fan_out"])))
        if base.shape not in (shape, turned) or base.scale is not None:
            raise SetupError(f"{self.folder}: {short(module)} is of shape {shape}, and the base's of {base.shape}")
        return LowRank(a, b, self._scale(module, a.shape[0]), is_turned)

    def _scale(self, module: str, rank: int) -> float:
        stated = _matching(self.config, "rank_pattern", module, self.config.get("r"))
        if stated != rank:
            raise SetupError(f"{self.folder / CONFIG}: {short(module)} has rank {rank}, and `r` is {short(stated)}")
        alpha = _matching(self.config, "alpha_pattern", module, self.config.get("lora_alpha"))
        if type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise SetupError(f"{self.folder / CONFIG}: `lora_alpha` must be a number, not {short(alpha)}")
        return float(alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))


def read_adapter(folder: Path, architecture: str) -> Adapter | None:
    """The adapter in the encoder's folder, if there is one. Raises SetupError for a kind that is not read, and for one
    with a head that the config.json, whose class is `architecture`, does not have."""
    config = read_json(folder / CONFIG)
    if not config:
        return None
    _check(config, folder / CONFIG)
    head = _HEADS.get(str(config.get("task_type")))
    if head is not None and not architecture.endswith(head):
        raise SetupError(
            f"{folder / CONFIG}: task_type {config['task_type']} needs a config.json beside it, whose `architectures` "
            f"names a class *{head}, and whose `id2label` the labels"
        )
    file = next((folder / name for name in _WEIGHTS if (folder / name).exists()), folder / _WEIGHTS[0])
    pairs: dict[str, dict[str, Tensor]] = {}
    whole = {}
    for name, tensor in scan(file).items():
        name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        part = _PART.fullmatch(name)
        if part is None:
            whole[name] = tensor
        else:
            pairs.setdefault(part["module"], {})[part["side"]] = tensor
    return Adapter(folder, {"fan_in_fan_out": False, **config}, pairs, whole)


def base_of(folder: Path) -> tuple[str, str | None]:
    """The name of an adapter's base, and its revision. Raises SetupError."""
    config = read_json(folder / CONFIG)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not 0 < len(base) <= _LONGEST or "\0" in base:
        raise SetupError(f"{folder / CONFIG}: `base_model_name_or_path` must name the base, not {short(base)}")
    return base, revision if isinstance(revision, str) and revision else None


def _check(config: Mapping[str, Any], file: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise SetupError(f"{file}: peft_type {short(config.get('peft_type'))} is not supported; supported: LORA")
    for key in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(config.get(key), bool | None):
            raise SetupError(f"{file}: {key} must be true or false, not {short(config[key])}")
    for key, why in _REFUSED.items():
        if config.get(key):
            raise SetupError(f"{file}: {key}: {why}")
    if config.get("init_lora_weights") not in _STARTS:
        raise SetupError(
            f"{file}: init_lora_weights {short(config['init_lora_weights'])} changes the base; convert the adapter "
            "with peft: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )


def _matching(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """The value of the first pattern that the module's name ends with, at a dot. Raises SetupError for a pattern that
    is more than a name."""
    patterns = config.get(key) or {}
    for pattern, value in patterns.items() if isinstance(patterns, Mapping) else ():
        if not _PLAIN.fullmatch(pattern):
            raise SetupError(f"{CONFIG}: {key}: {short(pattern)} is not supported; supported: names of modules")
        name = pattern.removeprefix("^")
        if module == name or (name == pattern and module.endswith(f".{name}")):
            return value
    return default


def _bare(name: str, prefixes: tuple[str, ...]) -> str:
    return name.removeprefix(next((prefix for prefix in prefixes if prefix and name.startswith(prefix)), ""))
