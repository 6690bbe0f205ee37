"""Writes a checkpoint again with safetensors in place of files of torch.save, and with a tokenizer.json."""

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bei import files
from bei.checkpoint import vocabulary
from bei.checkpoint.fetched import HEADS, PICKLES, WANTED
from bei.checkpoint.load import read
from bei.checkpoint.over_base import adapter_in
from bei.checkpoint.tensors import Tensor, Tensors, scan, stored_kind
from bei.checkpoint.torch_files import item_bytes
from bei.checkpoint.weights import tensors_of
from bei.errors import SetupError
from bei.progress import Stage

log = logging.getLogger("bei")

_INDEX = "pytorch_model.bin.index.json"


def convert(folder: Path, out: Path, name: str) -> None:
    """Writes the checkpoint in `folder` to `out`, a new or empty folder, and reads it there. Files in order are copied.
    Raises SetupError for an `out` that is not empty, and for a checkpoint that cannot be served."""
    out = files.expanded(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SetupError(f"{out} is not empty; name a new folder")
    if out.is_mount():
        raise SetupError(f"{out} is mounted and cannot be replaced; name a folder in it")
    if adapter_in(folder) is not None:
        raise SetupError(f"{name} is a LoRA adapter: serve it as it is, or merge it with peft, merge_and_unload()")
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing_folder(out) as unfinished:
        for place in _places(folder):
            _convert_one(folder / place, unfinished / place)
        read(unfinished, name)
        umask = os.umask(0)
        os.umask(umask)
        unfinished.chmod(0o777 & ~umask)
        if out.exists():
            out.rmdir()


def _places(folder: Path) -> list[Path]:
    """The folder and the folders in it that have files of a checkpoint."""
    found = {file.relative_to(folder).parent for pattern in (*WANTED, *PICKLES) for file in folder.rglob(pattern)}
    return sorted({Path(), *(place for place in found if not any(part.startswith(".") for part in place.parts))})


def _convert_one(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True, parents=True)
    safe = sorted(source.glob("*.safetensors"))
    for file in sorted({file for pattern in WANTED if "/" not in pattern for file in source.glob(pattern)}):
        if file.name not in (*HEADS, _INDEX):
            log.info("copying %s", file)
            shutil.copyfile(file, target / file.name)
    if not safe and any(file for pattern in PICKLES for file in source.glob(pattern)):
        write_safetensors(tensors_of(source), target / "model.safetensors")
    for head in HEADS:
        converted = target / Path(head).with_suffix(".safetensors")
        if (source / head).exists() and not converted.exists():
            write_safetensors(scan(source / head), converted)
    if (source / "tokenizer_config.json").exists() and not (source / "tokenizer.json").exists():
        (target / "tokenizer.json").write_bytes(vocabulary.build(source))


def write_safetensors(stored: Mapping[str, Tensor], file: Path) -> None:
    """The tensors as they are stored, one after another, so that memory holds one of them. The format: the size of the
    header, 8 bytes; the header, JSON; data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in stored.items():
        kind = stored_kind(tensor)
        start, end = end, end + math.prod(tensor.shape) * item_bytes(kind)
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    tensors = Tensors({name: (tensor,) for name, tensor in stored.items()})
    with file.open("wb") as out, Stage(f"writing {file.name}", end) as stage:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in stored:
            stage.add(out.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data))
    log.info("%s: %d tensors, %d MB", file.name, len(stored), end >> 20)
