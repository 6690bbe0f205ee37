"""Repositories of the Hugging Face hub, downloaded or found in its cache."""

import logging
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from bei.checkpoint.sources import WANTED, Fetched, quote
from bei.errors import SetupError, short, why
from bei.settings import Settings

log = logging.getLogger("bei")


def fetch(settings: Settings) -> Fetched:
    """Raises SetupError: one line with the remedy."""
    token = settings.credential.get_secret_value() if settings.credential else None
    arguments = {"revision": settings.revision, "cache_dir": settings.hub_cache, "token": token}
    try:
        folder = huggingface_hub.snapshot_download(settings.repo, allow_patterns=list(WANTED), **arguments)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as exc:
        raise SetupError(_hub_refusal(settings, exc)) from None
    except PermissionError as exc:
        raise SetupError(f"{exc.filename}: {why(exc)}; set HF_HOME to a folder that may be written to") from None
    except HFValidationError:
        raise SetupError(f"{short(settings.public_repo)} is not a Hugging Face repository id: owner/name") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as exc:
        folder = _cached(settings, exc)
    return Fetched(Path(folder), Path(folder).name)


def _hub_refusal(settings: Settings, error: Exception) -> str:
    secret = "set HF_TOKEN, or the secret that `runtime_secret_name` names"
    match error:
        case GatedRepoError():
            return f"{settings.repo} is gated: ask for access on its page, and {secret}"
        case RevisionNotFoundError():
            return f"{settings.repo} has no revision {short(settings.revision)}; see the branches and tags on its page"
        case _:
            return f"{settings.repo} is not on the hub, or is private: check the name, or {secret}"


def _cached(settings: Settings, error: Exception) -> str:
    """An earlier download, when the hub does not answer."""
    try:
        folder = huggingface_hub.snapshot_download(
            settings.repo, revision=settings.revision, cache_dir=settings.hub_cache, local_files_only=True
        )
    except LocalEntryNotFoundError:
        raise SetupError(
            f"{settings.repo} cannot be downloaded ({quote(error, settings)}) and is not in the cache; "
            "check the network and HF_HUB_OFFLINE, or serve a folder with source LOCAL"
        ) from None
    log.warning("the hub does not answer (%s): using the cached %s", quote(error, settings), settings.repo)
    return folder
