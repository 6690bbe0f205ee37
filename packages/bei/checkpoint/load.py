"""A folder of files becomes a Checkpoint: what the model is, its tensors under our names, how its texts are read."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bei import architectures
from bei.architectures.family import Family
from bei.architectures.shapes import tensor_shapes
from bei.architectures.spec import EncoderSpec, Pooling, PoolingMode
from bei.checkpoint.modules import Modules, read_json, read_limits, read_modules
from bei.checkpoint.sources import fetch
from bei.checkpoint.tensors import Tensor, Tensors, scan
from bei.errors import SetupError
from bei.settings import Settings

log = logging.getLogger("bei")

_NO_LIMIT = 1_000_000  # tokenizers without a length write 1e30 into model_max_length


@dataclass(frozen=True)
class Prompts:
    """Texts put before an input by name (config_sentence_transformers.json); `default` names the one used unasked."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` maps our names (architectures/spec.py) to arrays; bfloat16 ones come as ml_dtypes.bfloat16.

    `max_tokens` is the longest input in tokens, specials included. `dtype` is the stored precision of the weights.
    """

    name: str
    revision: str | None
    folder: Path
    spec: EncoderSpec
    tensors: Mapping[str, np.ndarray]
    tokenizer_file: Path
    max_tokens: int
    lowercase: bool
    prompts: Prompts
    dtype: str


def load(settings: Settings) -> Checkpoint:
    """Fetch the checkpoint that the settings name, and read it. Raises SetupError, one line that names the remedy."""
    fetched = fetch(settings)
    return read(fetched.folder, settings.repo, fetched.revision, settings.max_num_tokens, settings.pooling)


def read(
    folder: Path,
    name: str,
    revision: str | None = None,
    max_num_tokens: int = 1 << 20,
    pooling: PoolingMode | None = None,
) -> Checkpoint:
    """Read a folder in the Hugging Face layout, checked whole: every tensor is there, none is left over, shapes fit.

    `pooling` is what a checkpoint without modules.json pools by. Raises SetupError.
    """
    modules = read_modules(folder)
    config = read_json(modules.encoder / "config.json")
    if not config:
        raise SetupError(
            f"{modules.encoder / 'config.json'} is missing; is {folder} a model in the Hugging Face layout?"
        )
    _refuse_classifiers(config)
    family = architectures.family(config)
    pooled = modules.pooling or (Pooling((pooling,)) if pooling else _default_pooling(config))
    spec = replace(family.spec(config), pooling=pooled, head=modules.head)
    parts = {**_encoder_tensors(modules.encoder, family, spec), **modules.tensors}
    _check_shapes(parts, spec)
    limits = read_limits(modules.encoder)
    return Checkpoint(
        name=name,
        revision=revision,
        folder=folder,
        spec=spec,
        tensors=Tensors(parts),
        tokenizer_file=_tokenizer_file(folder, modules),
        max_tokens=_max_tokens(modules.encoder, limits, spec, max_num_tokens),
        lowercase=bool(limits.get("do_lower_case", False)),
        prompts=_prompts(folder),
        dtype=parts["embeddings.token"][0].dtype,
    )


def _refuse_classifiers(config: Mapping[str, Any]) -> None:
    architecture = (config.get("architectures") or [""])[0]
    if not architecture.endswith("Classification"):
        return
    if not config.get("id2label"):
        raise SetupError(
            f"config.json: {architecture} without `id2label`; add it, one name for each row of the classifier"
        )
    raise SetupError(f"config.json: {architecture} is a classifier; this version serves embedding models")


def _default_pooling(config: Mapping[str, Any]) -> Pooling:
    """TEI's: the first token for BERT and its kin, nothing for others (router/src/lib.rs)."""
    if "bert" not in config["model_type"]:
        raise SetupError(
            f"1_Pooling/config.json is missing and {config['model_type']!r} has no default pooling; "
            "add the file, or set BEI_POOLING"
        )
    log.warning("no modules.json: pooling the first token; if the model was trained otherwise, set BEI_POOLING")
    return Pooling(("first",))


def _encoder_tensors(folder: Path, family: Family, spec: EncoderSpec) -> dict[str, tuple[Tensor, ...]]:
    """Find each of our tensors in the checkpoint's files. Raises SetupError that lists what is missing or left over."""
    stored = {_modern(name): tensor for name, tensor in scan(_weight_files(folder)).items()}
    names = family.tensors(spec)
    first = names["embeddings.token"][0]
    prefix = next((p for p in family.prefixes if p + first in stored), None)
    if prefix is None:
        raise SetupError(f"{folder}: no tensor {first!r} in its safetensors files; is config.json's model_type right?")
    stored = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
    wanted = [theirs for parts in names.values() for theirs in parts]
    missing = [theirs for theirs in wanted if theirs not in stored]
    if missing:
        raise SetupError(f"{folder}: tensors missing: {_some(missing)}")
    ignored = re.compile("|".join(family.ignored))
    left = [name for name in stored.keys() - set(wanted) if not ignored.match(name)]
    if left:
        raise SetupError(f"{folder}: tensors that config.json does not account for: {_some(sorted(left))}")
    return {ours: tuple(stored[theirs] for theirs in parts) for ours, parts in names.items()}


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return sorted({folder / file for file in read_json(index).get("weight_map", {}).values()})
    return [folder / "model.safetensors"]


def _modern(name: str) -> str:
    """BERT's first checkpoints, ported from TensorFlow, call a norm's weight gamma and its bias beta."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _check_shapes(parts: Mapping[str, tuple[Tensor, ...]], spec: EncoderSpec) -> None:
    for name, expected in tensor_shapes(spec).items():
        if name not in parts:
            raise SetupError(f"tensor {name} is missing from the checkpoint")
        tensors = parts[name]
        found = (sum(t.shape[0] for t in tensors), *tensors[0].shape[1:])
        if found != expected:
            raise SetupError(f"{tensors[0].file}: {tensors[0].name} has shape {found}, config.json says {expected}")
        if tensors[0].dtype not in ("float32", "float16", "bfloat16"):
            raise SetupError(
                f"{tensors[0].file}: {tensors[0].name} is {tensors[0].dtype}; use float32, float16 or bfloat16"
            )


def _tokenizer_file(folder: Path, modules: Modules) -> Path:
    for file in (modules.encoder / "tokenizer.json", folder / "tokenizer.json"):
        if file.exists():
            return file
    raise SetupError(
        f"{folder / 'tokenizer.json'} is missing; write it with "
        "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def _max_tokens(folder: Path, limits: Mapping[str, Any], spec: EncoderSpec, max_num_tokens: int) -> int:
    """The smallest of: max_seq_length, else the tokenizer's model_max_length; the positions; max_num_tokens."""
    stated = limits.get("max_seq_length") or read_json(folder / "tokenizer_config.json").get("model_max_length")
    stated = int(stated) if stated and stated < _NO_LIMIT else spec.max_tokens
    return min(stated, spec.max_tokens, max_num_tokens)


def _prompts(folder: Path) -> Prompts:
    config = read_json(folder / "config_sentence_transformers.json")
    texts = {name: text for name, text in (config.get("prompts") or {}).items() if text is not None}
    default = config.get("default_prompt_name")
    if default is not None and default not in texts:
        raise SetupError(f"config_sentence_transformers.json: default_prompt_name {default!r} is not among its prompts")
    return Prompts(texts, default)
