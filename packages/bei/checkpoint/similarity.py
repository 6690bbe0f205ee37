"""The similarity of an embedder's vectors, as sentence-transformers saves it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from bei.checkpoint.modules import Modules, read_json
from bei.errors import SetupError, short

SimilarityName = Literal["cosine", "dot", "euclidean", "manhattan"]
_FILE = "config_sentence_transformers.json"
_ALIASES = {"dot_product": "dot"}


@dataclass(frozen=True)
class Similarity:
    """A distance counts as its negative. `of_units`: the model's last module gives vectors length 1."""

    name: SimilarityName = "cosine"
    of_units: bool = False


COSINE = Similarity()


def read_similarity(folder: Path, modules: Modules) -> Similarity:
    """Raises SetupError for a similarity that sentence-transformers does not have."""
    stated = read_json(folder / _FILE).get("similarity_fn_name") or "cosine"
    known: tuple[SimilarityName, ...] = get_args(SimilarityName)
    found = next((name for name in known if name == _ALIASES.get(str(stated), stated)), None)
    if found is None:
        raise SetupError(f"{_FILE}: similarity_fn_name {short(stated)} is not supported; supported: {', '.join(known)}")
    return Similarity(found, modules.normalizes)
