"""Repositories of the Hugging Face hub, downloaded or found in its cache."""

import functools
import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from bei import __version__, files
from bei.checkpoint.fetched import READING, WANTED, Fetched, pickles_for, quote
from bei.checkpoint.modules import inside
from bei.checkpoint.retries import GaveUp, passes, persist
from bei.errors import SetupError, short, why
from bei.settings import SourceSettings

log = logging.getLogger("bei")

_SECONDS = 5.0  # that the hub has to begin its answer, and to go on with it
_TRIES = 3  # of each the library goes on with a file where that broke off, several times

_NEEDED = (
    *("config.json", "modules.json", "tokenizer.json", "tokenizer_config.json", "config_sentence_transformers.json"),
    *("sentence_*_config.json", "*.safetensors", "*.safetensors.index.json", "[0-9]*_*/*.json"),
    *("router_config.json", "*_[0-9]*_*/*.json", "gliner_config.json"),
    *("artifact.metadata", "chat_template.jinja"),
)
"""The files of WANTED that a cache must have: without these a model would be another, or none."""

_NAME = re.compile(r"(?!.*\.\.)[\w.+:=-]{1,255}")
_NAMING_HEADERS = ("etag", "x-linked-etag", "x-repo-commit")
"""Values of which the library makes names of files and folders in its cache, whatever they are."""

constants.HF_HUB_DISABLE_TELEMETRY = True  # whatever imported the library first: no versions, no question about agents


_CONVERTER, _TITLE = "SFconvertbot", "Adding `safetensors` variant of this model"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(settings: SourceSettings) -> Fetched:
    """Safetensors; where the repository has none, those of the hub's converter, or else files of torch.save. Raises
    SetupError: one line with the remedy."""
    folder = _fetch(settings, ())
    pickles = pickles_for(folder)
    if not pickles:
        return Fetched(folder, folder.name)
    commit = _converted(settings, folder.name) if settings.revision in (None, "main") else None
    if commit is not None:
        log.info("%s has no safetensors: using revision %s, the hub's conversion of it", settings.repo, commit)
        return Fetched(_fetch(settings.model_copy(update={"revision": commit}), ()), commit)
    return Fetched(_fetch(settings, pickles), folder.name)


def fetch_without_weights(settings: SourceSettings) -> Path:
    """The folder with the files that say how a model reads texts. Raises SetupError."""
    return _fetch(settings, (), READING)


def _fetch(settings: SourceSettings, more: tuple[str, ...], wanted: tuple[str, ...] = WANTED) -> Path:
    """The folder with the wanted files, and those of the patterns `more`."""
    try:
        folder = _download(settings, (*wanted, *more))
    except SetupError:
        raise
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as exc:
        raise SetupError(_hub_refusal(settings, exc)) from None
    except PermissionError as exc:
        raise SetupError(f"{exc.filename}: {why(exc)}; set HF_HOME to a folder that may be written to") from None
    except HFValidationError:
        raise SetupError(f"{short(settings.public_repo)} is not a Hugging Face repository id: owner/name") from None
    except GaveUp as exc:
        folder = _cached(settings, more, f"{quote(exc.error, settings)}, {exc.tries} tries in a row")
    except Exception as exc:  # the library passes on what its client raises, and has had three
        folder = _cached(settings, more, quote(exc, settings))
    return Path(folder)


def _converted(settings: SourceSettings, commit: str) -> str | None:
    """The commit by which the hub's converter adds safetensors to `commit`; None without one. A found one is noted, so
    that it serves without the hub, too."""
    with files.cache(settings.cache_dir, "conversions") as notes:
        note = notes / hashlib.sha256(f"{settings.repo} {commit}".encode()).hexdigest()[:32]
        with files.opened(note) as kept:
            found = kept.read().decode() if kept else None
        if found is None and (found := _conversion(settings, commit)):
            with files.replacing(note) as unfinished:
                unfinished.write_text(found)
    return found if found and _COMMIT.fullmatch(found) else None


def _conversion(settings: SourceSettings, commit: str) -> str | None:
    """As transformers does: an open pull request of the converter's whose only commit follows `commit`."""
    api = huggingface_hub.HfApi(**_identity(settings))
    try:
        for request in api.get_repo_discussions(
            settings.repo, author=_CONVERTER, discussion_type="pull_request", discussion_status="open"
        ):
            if (request.author, request.title) == (_CONVERTER, _TITLE):
                newest, *older = api.list_repo_commits(settings.repo, revision=request.git_reference)
                if older and older[0].commit_id == commit:
                    return str(newest.commit_id)
    except Exception as exc:  # of any kind, since the repository's own files serve, too
        log.info("the hub's conversions of %s are unknown (%s)", settings.repo, quote(exc, settings))
    return None


def _identity(settings: SourceSettings) -> dict[str, Any]:
    token = settings.credential.get_secret_value() if settings.credential else None
    return {"token": token, "headers": {"user-agent": f"bei/{__version__}"}}


def _download(settings: SourceSettings, names: tuple[str, ...]) -> str:
    """The folder of the library's cache. A hub that says nothing is asked again, where nothing is cached."""
    arguments = {**_identity(settings), **_wanted(settings, names)}
    answers = _answers()
    folder: str = persist(
        lambda: huggingface_hub.snapshot_download(settings.repo, **arguments),
        passes=lambda error: not constants.HF_HUB_OFFLINE and (passes(error) or _is_silence(error, answers)),
        say=lambda error: f"the hub breaks off ({quote(error, settings)})" if answers else "the hub does not answer",
        tries=_TRIES,
    )
    if not answers and not constants.HF_HUB_OFFLINE:
        log.warning("the hub does not answer: using the cached %s", settings.repo)
    return folder


def _is_silence(error: BaseException, answers: list[int]) -> bool:
    """Whether the library found nothing in its cache after a hub that said nothing."""
    return isinstance(error, LocalEntryNotFoundError) and not answers


def _wanted(settings: SourceSettings, names: tuple[str, ...]) -> dict[str, Any]:
    return {"revision": settings.revision, "cache_dir": settings.hub_cache, "allow_patterns": list(names)}


def _answers() -> list[int]:
    """To which the status of each answer of the hub is added from now on. A silent one is waited for _SECONDS: the
    library itself would wait for ever."""
    answers: list[int] = []

    def note(answer: Any) -> None:
        _check_names(answer)
        if answer.status_code < 500:
            answers.append(answer.status_code)

    client = huggingface_hub.get_session()
    hooks: dict[str, list[Callable[[Any], None]]] = {
        "request": [*client.event_hooks["request"], _hurry],
        "response": [note],
    }
    huggingface_hub.set_client_factory(functools.partial(type(client), event_hooks=hooks, follow_redirects=True))
    return answers


def _check_names(answer: Any) -> None:
    """Raises SetupError for an answer by which the library would write outside its cache, or link to what is there."""
    request = answer.request
    if request.method == "HEAD":
        for name in _NAMING_HEADERS:
            _check_name(name, answer.headers.get(name))
    elif not _is_listing(request.url):
        return
    elif answer.has_redirect_location and not _is_listing(request.url.join(answer.headers["location"])):
        raise SetupError(f"the hub leads from {short(request.url.path)} to what is no list of files")
    elif answer.is_success:
        answer.read()
        _check_listing(answer.json())


def _is_listing(url: Any) -> bool:
    return "/api/models/" in url.path


def _check_listing(content: Any) -> None:
    """The files of a repository, or what it is."""
    for entry in content if isinstance(content, list) else [content]:
        inside(Path(), entry.get("path", "."), "the hub")
        _check_name("sha", entry.get("sha"))
        _check_name("lfs", (entry.get("lfs") or {}).get("oid"))


def _check_name(key: str, value: Any) -> None:
    if value is not None and not _NAME.fullmatch(str(value).removeprefix("W/").strip('"')):
        raise SetupError(f"the hub says `{key}` {short(value)}, which names no file of its cache")


def _hurry(request: Any) -> None:
    """The library asks some things with a time of None, which a client's own does not shorten."""
    limits = request.extensions["timeout"].items()
    request.extensions["timeout"] = {name: _SECONDS if limit is None else limit for name, limit in limits}


def _hub_refusal(settings: SourceSettings, error: Exception) -> str:
    secret = "set HF_TOKEN, or the secret that `runtime_secret_name` names"
    match error:
        case GatedRepoError():
            return f"{settings.repo} is gated: ask for access on its page, and {secret}"
        case RevisionNotFoundError():
            return f"{settings.repo} has no revision {short(settings.revision)}; see the branches and tags on its page"
        case _:
            return f"{settings.repo} is not on the hub, or is private: check the name, or {secret}"


def _cached(settings: SourceSettings, more: tuple[str, ...], reason: str) -> str:
    """An earlier download, when the hub does not answer."""
    try:
        folder: str = huggingface_hub.snapshot_download(
            settings.repo, local_files_only=True, **_wanted(settings, (*_NEEDED, *more))
        )
    except LocalEntryNotFoundError:
        raise SetupError(
            f"{settings.repo} cannot be downloaded ({reason}) and is not in the cache, or not all of "
            "it; check the network and HF_HUB_OFFLINE, or serve a folder with source LOCAL"
        ) from None
    log.warning("the hub does not answer (%s): using the cached %s", reason, settings.repo)
    return folder
