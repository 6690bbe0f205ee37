"""From a folder to the bytes of tokenizer.json, and the place in the cache where they are kept."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tokenizers

from bei import files
from bei.checkpoint.modules import read_json
from bei.checkpoint.vocabulary import stated
from bei.checkpoint.vocabulary.draft import MOST_BYTES, Files, Kind, drafted
from bei.checkpoint.vocabulary.kinds import choose
from bei.errors import SetupError, library_errors, why

log = logging.getLogger("bei")


@dataclass(frozen=True)
class _Sources:
    """The files that a tokenizer is made of. `key` changes with any of them, and with the code that reads them."""

    kind: Kind
    files: Files
    stated: stated.Stated
    key: str


def build(folder: Path) -> bytes:
    """The tokenizer.json of a checkpoint that has none, as transformers' tokenizer of its class would write it. Raises
    SetupError: one line with the remedy."""
    with _explained(folder):
        return _built(_sources(folder))


def kept(folder: Path, cache_dir: Path) -> Path:
    """The same as a file in the cache. It is built where the cache has none of these sources. Raises SetupError."""
    with _explained(folder):
        sources = _sources(folder)
    with files.cache(cache_dir, "tokenizers") as root:
        place = root / sources.key / "tokenizer.json"
        if not files.is_ours(place):
            files.make_folder(place.parent)
            with _explained(folder):
                content = _built(sources)
            with files.replacing(place) as unfinished:
                unfinished.write_bytes(content)
            log.info("tokenizer.json is built from %s, and kept in %s", ", ".join(sources.files), place.parent)
    return place


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns what broken files raise, here and in the library, into a SetupError."""
    with library_errors(f"the tokenizer of {folder} cannot be built", SetupError):
        yield


def _built(sources: _Sources) -> bytes:
    return drafted(sources.kind, sources.files, sources.stated).to_str().encode()


def _sources(folder: Path) -> _Sources:
    config = read_json(folder / "config.json")
    of_tokenizer = read_json(folder / "tokenizer_config.json")
    above = {key: of for key, of in of_tokenizer.items() if of is not None}
    name, kind, names = choose(folder, str(config.get("model_type")), {**config, **above})
    contents = {file: _content(folder / file) for file in names}
    digest = hashlib.sha256(f"{name} {tokenizers.__version__} {_code()}".encode())
    for file in stated.FILES:
        digest.update(json.dumps(read_json(folder / file)).encode())
    for file, content in contents.items():
        digest.update(f"{file} {len(content)} ".encode() + content)
    return _Sources(kind, contents, stated.read(folder), digest.hexdigest()[:32])


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
    except OSError as exc:
        raise SetupError(f"{file}: {why(exc)}") from None
    if len(content) > MOST_BYTES:
        raise SetupError(f"{file} is larger than {MOST_BYTES} bytes, the most that is read")
    return content


@cache
def _code() -> str:
    """A hash of the files that build tokenizers."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
