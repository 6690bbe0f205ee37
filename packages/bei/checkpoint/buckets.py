"""A prefix in a bucket of S3, GCS or Azure, copied through its fsspec filesystem."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from pydantic import SecretStr

from bei import extras
from bei.checkpoint.fetched import WANTED, is_needed_pickle, quote
from bei.checkpoint.modules import inside
from bei.checkpoint.pace import kept_pace
from bei.checkpoint.retries import GaveUp, passes, persist
from bei.errors import SetupError
from bei.settings import SourceSettings

log = logging.getLogger("bei")

Secret = dict[str, str]


class _Store(NamedTuple):
    """fsspec's name of a filesystem, our extra that installs it, and its arguments from the secret's JSON."""

    protocol: str
    extra: str
    arguments: Callable[[Secret], dict[str, object]]


def _s3(secret: Secret) -> dict[str, object]:
    return {
        "key": secret.get("aws_access_key_id"),
        "secret": secret.get("aws_secret_access_key"),
        "token": secret.get("aws_session_token"),
        "client_kwargs": {"region_name": secret["aws_region"]} if secret.get("aws_region") else {},
    }


# The fields of a service account's key file beside the three values that Baseten's secret holds.
_GOOGLE = {"type": "service_account", "token_uri": "https://oauth2.googleapis.com/token"}


def _gcs(secret: Secret) -> dict[str, object]:
    return {"token": {**_GOOGLE, **secret} if secret else None}


def _azure(secret: Secret) -> dict[str, object]:
    return {key: secret[key] for key in ("account_name", "account_key") if key in secret}


_STORES = {"S3": _Store("s3", "s3", _s3), "GCS": _Store("gs", "gcs", _gcs), "AZURE": _Store("az", "azure", _azure)}


def download(settings: SourceSettings, folder: Path) -> None:
    """The files of WANTED under the prefix that `repo` names, into `folder`. Raises SetupError: one line."""
    filesystem = _filesystem(settings)
    kept_pace(lambda: _copy(filesystem, settings, folder), folder, settings.public_repo)


def _filesystem(settings: SourceSettings) -> Any:
    store = _STORES[settings.source]
    arguments = store.arguments(_secret(settings.credential, settings))
    try:
        return fsspec.filesystem(store.protocol, **arguments)
    except ImportError:
        raise SetupError(f"source {settings.source} needs an extra: {extras.install(store.extra)}") from None
    except Exception as exc:  # each has its own for a secret of the wrong form
        reason = quote(exc, settings)
        raise SetupError(f"the secret for source {settings.source} is not accepted ({reason})") from None


def _secret(credential: SecretStr | None, settings: SourceSettings) -> Secret:
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


def _copy(filesystem: Any, settings: SourceSettings, folder: Path) -> None:
    """Copies the files that we read, and no others, from the prefix that `repo` names; a file that is complete is not
    fetched again. filesystem: an fsspec.AbstractFileSystem"""
    root, repo = filesystem._strip_protocol(settings.repo).rstrip("/"), settings.public_repo
    again = partial(persist, passes=passes, say=lambda error: f"{repo} breaks off ({quote(error, settings)})")
    try:
        found: dict[str, int | None] = again(lambda: _listed(filesystem, root))
        if sum(filter(None, found.values())) > settings.max_download_bytes:
            raise SetupError(f"{repo} is larger than {settings.max_download_bytes} bytes; see BEI_MAX_DOWNLOAD_BYTES")
        for path, size in sorted(found.items()):
            target = inside(folder, path.removeprefix(root).lstrip("/"), repo)
            target.parent.mkdir(parents=True, exist_ok=True)
            log.info("downloading %s", path)
            again(partial(_get, filesystem, path, target, size))
    except SetupError:
        raise
    except GaveUp as exc:
        reason = quote(exc.error, settings)
        raise SetupError(f"{repo} cannot be read ({reason}, {exc.tries} tries in a row); check the network") from None
    except Exception as exc:  # every filesystem raises its own
        raise SetupError(f"{repo} cannot be read ({quote(exc, settings)}); check the path and the secret") from None
    if not found:
        raise SetupError(f"{repo} holds no *.json and no weights; check the path")


def _listed(filesystem: Any, root: str) -> dict[str, int | None]:
    """The wanted files under a path, and of each its bytes where the store says them."""
    filesystem.invalidate_cache()
    found = {
        path: of.get("size")
        for pattern in (*WANTED, "*.bin", "*/*.bin")
        for path, of in filesystem.glob(f"{root}/{pattern}", detail=True).items()
    }
    return {path: size for path, size in found.items() if not path.endswith(".bin") or is_needed_pickle(path, found)}


def _get(filesystem: Any, path: str, target: Path, size: int | None) -> None:
    """Raises OSError where the file ends early, too: some stores' libraries take that for its end."""
    filesystem.get_file(path, str(target))
    came = target.stat().st_size
    if size is not None and came != size:
        raise OSError(f"{came} of {size} bytes came")
