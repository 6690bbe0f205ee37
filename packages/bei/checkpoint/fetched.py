"""The folder that a source becomes, which files it takes there, and how it quotes what a library says of it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from bei.checkpoint.modules import inside, read_json
from bei.settings import SourceSettings

VOCABULARIES = (
    *("vocab.txt", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model"),
    *("tiktoken.model", "*.tiktoken"),
)
"""Files of which a missing tokenizer.json is built; vocab.json is JSON anyway."""

HEADS = ("sparse_linear.pt", "colbert_linear.pt")
"""Those of BGE-M3: small, and fetched whatever is beside them."""
WANTED = (
    *VOCABULARIES,
    *(f"*/{name}" for name in VOCABULARIES),
    *("*.json", "*.safetensors", "*/config.json", "*/model.safetensors", "*/*.json", "artifact.metadata"),
    *("README.md", "chat_template.jinja"),  # which may call a language model a reranker
    *HEADS,
)
READING = (*VOCABULARIES, "*.json", "chat_template.jinja")
"""Files of an encoder whose weights are in another checkpoint."""
PICKLES = ("pytorch_model*.bin", "adapter_model.bin")
"""Names of files of torch.save with weights; those of optimizers and training states are others."""
_WITHOUT_WEIGHTS = ("Pooling", "SpladePooling", "Normalize", "Dropout", "MultiVectorMask", "LogitScore")


@dataclass(frozen=True)
class Fetched:
    """A folder in the Hugging Face layout, and the revision it was taken at where the source has such."""

    folder: Path
    revision: str | None = None


def pickles_for(folder: Path) -> tuple[str, ...]:
    """Patterns of the files of torch.save that a fetched folder needs: in each of its folders of weights without
    safetensors."""
    modules = [of for of in read_json(folder / "modules.json", list) if isinstance(of, dict)]
    places = {"": folder} | {
        str(of.get("path")): inside(folder, of.get("path"), "modules.json")
        for of in modules
        if str(of.get("type")).rpartition(".")[2] not in _WITHOUT_WEIGHTS
    }
    used = {path: place for path, place in places.items() if any(place.glob("*config.json"))}
    lacking = [path for path, place in used.items() if not any(place.glob("*.safetensors"))]
    return tuple(str(PurePosixPath(path) / name) for path in lacking for name in PICKLES)


def is_needed_pickle(name: str, names: Iterable[str]) -> bool:
    """Whether a file of torch.save is alone: of `names`, those of all files, none is safetensors in its folder."""
    path = PurePosixPath(name)
    return any(fnmatch(path.name, pattern) for pattern in PICKLES) and not any(
        other.endswith(".safetensors") and PurePosixPath(other).parent == path.parent for other in names
    )


def quote(error: BaseException, settings: SourceSettings) -> str:
    """A library's error in a few words, without the secret, which it may quote."""
    text = str(error)
    for secret in _secrets(settings):
        text = text.replace(secret, "***")
    return f"{type(error).__name__}: {text.splitlines()[0][:120]}" if text else type(error).__name__


def _secrets(settings: SourceSettings) -> list[str]:
    """The credential, and the values in it where it is JSON; the longest first, for one may hold another."""
    if settings.credential is None:
        return []
    whole = settings.credential.get_secret_value()
    try:
        values = json.loads(whole)
    except ValueError:
        values = None
    parts = map(str, values.values()) if isinstance(values, dict) else ()
    return sorted(filter(None, (whole, *parts)), key=len, reverse=True)
