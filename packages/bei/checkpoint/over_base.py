"""A checkpoint's folder over that of its base, of an adapter or of an encoder: a folder of links in the cache, in the
layout of any other checkpoint."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from bei import files
from bei.checkpoint.adapters import CONFIG
from bei.checkpoint.modules import inside, read_json
from bei.errors import SetupError

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model-", "pytorch_model-")
"""Beginnings of the names of a model's weights: the base's are taken."""


def adapter_in(folder: Path) -> Path | None:
    """The part of a checkpoint's folder that holds an adapter: the folder itself, or that of a module."""
    modules = [of for of in read_json(folder / "modules.json", list) if isinstance(of, dict)]
    paths = ["", *(of.get("path") for of in modules)]
    places = [inside(folder, path, "modules.json") for path in paths]
    found = next((place for place in places if (place / CONFIG).exists()), None)
    return None if found is None else found.relative_to(folder)


def over_base(folder: Path, place: Path, base: Path, cache_dir: Path) -> Path:
    """Links to the files of `folder`, and in `place` to those of the base that it lacks. Raises SetupError."""
    return _linked({**dict(_files(base, place)), **dict(_files(folder, Path(), without_weights=place))}, cache_dir)


def beside_encoder(folder: Path, encoder: Path, cache_dir: Path) -> Path:
    """Links to the files of `folder`, and to those of its encoder that it lacks, weights apart. Raises SetupError."""
    links = {**dict(_files(encoder, Path(), without_weights=Path())), **dict(_files(folder, Path()))}
    return _linked(links, cache_dir)


def _linked(links: Mapping[str, str], cache_dir: Path) -> Path:
    key = hashlib.sha256(repr(sorted(links.items())).encode()).hexdigest()[:24]
    with files.cache(cache_dir, "adapted") as root:
        whole = root / key
        if not whole.is_dir():
            with files.replacing_folder(whole) as unfinished:
                for name, target in links.items():
                    (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                    (unfinished / name).symlink_to(target)
        elif not files.is_ours(whole):
            raise SetupError(f"{whole} may have been written by others; remove it")
    return whole


def _files(folder: Path, into: Path, without_weights: Path | None = None) -> Iterator[tuple[str, str]]:
    """The files of a checkpoint, two folders deep: where each is in the new folder, and where it is now."""
    for file in (*folder.glob("*"), *folder.glob("*/*")):
        name = file.relative_to(folder)
        is_weights = name.parent == without_weights and name.name.startswith(_WEIGHTS)
        if file.is_file() and not is_weights:
            yield str(into / name), str(file.resolve())
