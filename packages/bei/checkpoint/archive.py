"""A tar.gz from an address that a config names: bounded, never from inside the network, never outside its folder."""

import logging
import shutil
import socket
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from typing import IO

import httpx

from bei.errors import SetupError

log = logging.getLogger("bei")

_WANTED = (".json", ".safetensors")
_MAX_REDIRECTS = 5
_PROGRESS_SECONDS = 5
_CHUNK = 1 << 20


def download(url: str, folder: Path, *, max_bytes: int, allow_private: bool) -> None:
    """Unpack the JSON and safetensors files of the tar.gz at `url` into `folder`.

    `max_bytes` bounds both what is sent and what is unpacked. Raises SetupError.
    """
    archive = folder / "archive.tar.gz"
    try:
        with _get(url, allow_private) as response, archive.open("wb") as file:
            _save(response, file, url, max_bytes)
        _unpack(archive, folder, max_bytes)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        reason = str(exc).partition("\n")[0] or type(exc).__name__
        raise SetupError(f"{url} cannot be downloaded: {reason}") from None
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise SetupError(f"{url} is not a whole tar.gz: {exc}") from None
    finally:
        archive.unlink(missing_ok=True)
    _strip_top(folder)


@contextmanager
def _get(url: str, allow_private: bool) -> Iterator[httpx.Response]:
    """The answer after redirects, each of them checked like the first."""
    with httpx.Client(timeout=httpx.Timeout(30, read=120), trust_env=allow_private) as client:
        for _ in range(_MAX_REDIRECTS + 1):
            target = httpx.URL(url)
            if target.scheme not in ("http", "https"):
                raise SetupError(f"{url}: a REMOTE_URL is http or https")
            request = client.build_request("GET", target) if allow_private else _pinned(client, target)
            with closing(client.send(request, stream=True)) as response:
                if not response.has_redirect_location:
                    response.raise_for_status()
                    yield response
                    return
                url = str(target.join(response.headers["location"]))
    raise SetupError(f"{url}: more than {_MAX_REDIRECTS} redirects")


def _pinned(client: httpx.Client, url: httpx.URL) -> httpx.Request:
    """A request to an address that was checked, so that a second look-up cannot lead elsewhere (DNS rebinding)."""
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise SetupError(f"{url.host} cannot be resolved: {exc}") from None
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not ip_address(address.partition("%")[0]).is_global:
            raise SetupError(
                f"{url.host} is {address}, an address inside the network; set BEI_ALLOW_PRIVATE_URLS=true to allow it"
            )
    return client.build_request(
        "GET",
        url.copy_with(host=addresses[0]),
        headers={"host": url.netloc.decode()},
        extensions={"sni_hostname": url.host},
    )


def _save(response: httpx.Response, file: IO[bytes], url: str, max_bytes: int) -> None:
    stated, received, shown = int(response.headers.get("content-length", 0)), 0, time.monotonic()
    for chunk in response.iter_raw(_CHUNK):
        received += len(chunk)
        if max(received, stated) > max_bytes:
            raise SetupError(f"{url} is larger than {max_bytes} bytes; raise BEI_MAX_DOWNLOAD_BYTES to allow it")
        file.write(chunk)
        if time.monotonic() - shown > _PROGRESS_SECONDS:
            shown = time.monotonic()
            log.info("downloading: %d MB of %s", received >> 20, f"{stated >> 20} MB" if stated else "unknown")


def _unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    unpacked = 0
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise SetupError(
                    f"the archive holds {member.name!r}, a path outside its own folder; it is not unpacked"
                )
            if not (member.isfile() or member.isdir()):
                raise SetupError(f"the archive holds {member.name!r}, a link or device; it is not unpacked")
            unpacked += member.size
            if unpacked > max_bytes:
                raise SetupError(f"the archive unpacks to more than {max_bytes} bytes; see BEI_MAX_DOWNLOAD_BYTES")
            if member.isfile() and name.suffix in _WANTED:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy, _CHUNK)


def _strip_top(folder: Path) -> None:
    """Archives often hold one folder that holds everything."""
    children = list(folder.iterdir())
    if len(children) == 1 and children[0].is_dir():
        for child in children[0].iterdir():
            child.rename(folder / child.name)
        children[0].rmdir()
