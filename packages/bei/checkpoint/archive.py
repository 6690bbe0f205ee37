"""A tar.gz from an address that a config names: bounded, never from inside the network, never outside its folder."""

import gzip
import logging
import shutil
import socket
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path, PurePosixPath
from typing import IO

import httpx

from bei.errors import SetupError, short
from bei.settings.secrets import without_secrets

log = logging.getLogger("bei")

_WANTED = (".json", ".safetensors")
_MAX_REDIRECTS = 5
_MAX_MEMBERS = 10_000
_PROGRESS_SECONDS = 5
_CHUNK = 1 << 20
_AZURE_HOST = ip_address("168.63.129.16")  # of every virtual machine there, under a public address
_TRANSLATED = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))  # to IPv4 (RFC 6052, RFC 8215)


def download(url: str, folder: Path, *, max_bytes: int, allow_private: bool) -> None:
    """Unpack the JSON and safetensors files of the tar.gz at `url` into `folder`.

    `max_bytes` bounds both what is sent and what is unpacked. Raises SetupError, which shows no more of the address
    than is no secret.
    """
    archive, shown = folder / "archive.tar.gz", without_secrets(url)
    try:
        with _get(url, allow_private) as response, archive.open("wb") as file:
            _save(response, file, shown, max_bytes)
    except httpx.HTTPStatusError as exc:
        refused = f"{exc.response.status_code} {exc.response.reason_phrase}"
        raise SetupError(f"{shown} cannot be downloaded: {refused}") from None
    except httpx.HTTPError as exc:
        reason = str(exc).partition("\n")[0] or type(exc).__name__
        raise SetupError(f"{shown} cannot be downloaded: {reason}") from None
    except (httpx.InvalidURL, ValueError):
        raise SetupError(f"{shown} cannot be downloaded: it is no address, or leads to none") from None
    unpack(archive, folder, max_bytes=max_bytes, shown=shown)
    archive.unlink()
    _strip_top(folder)


def unpack(archive: Path, folder: Path, *, max_bytes: int, shown: str) -> None:
    """The JSON and safetensors files of a tar.gz, under `folder`. Raises SetupError, which calls it `shown`."""
    try:
        with gzip.open(archive) as content, tarfile.open(fileobj=_InParts(content), mode="r:") as tar:
            _unpack(tar, folder, max_bytes)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, zlib.error) as exc:
        raise SetupError(f"{shown} is not a whole tar.gz: {exc}") from None


class _InParts:
    """What tarfile reads from. It takes a member's extended header into memory at once, however large that says it
    is: nothing that an archive of a model needs comes in parts of more than a megabyte."""

    def __init__(self, content: IO[bytes]):
        self._content = content
        self.seek, self.tell = content.seek, content.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise SetupError(f"the archive has a header of {size} bytes; it is not unpacked")
        return self._content.read(size)


@contextmanager
def _get(url: str, allow_private: bool) -> Iterator[httpx.Response]:
    """The answer after redirects, each of them checked like the first."""
    with httpx.Client(timeout=httpx.Timeout(30, read=120), trust_env=allow_private) as client:
        for _ in range(_MAX_REDIRECTS + 1):
            target = httpx.URL(url)
            if target.scheme not in ("http", "https"):
                raise SetupError(f"{without_secrets(url)}: a REMOTE_URL is http or https")
            request = client.build_request("GET", target) if allow_private else _pinned(client, target)
            with closing(client.send(request, stream=True)) as response:
                if not response.has_redirect_location:
                    response.raise_for_status()
                    yield response
                    return
                url = str(target.join(response.headers["location"]))
    raise SetupError(f"{without_secrets(url)}: more than {_MAX_REDIRECTS} redirects")


def _pinned(client: httpx.Client, url: httpx.URL) -> httpx.Request:
    """A request to an address that was checked, so that a second look-up cannot lead elsewhere (DNS rebinding)."""
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise SetupError(f"{url.host} cannot be resolved: {exc}") from None
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_public(ip_address(address.partition("%")[0])):
            raise SetupError(
                f"{url.host} is {address}, an address inside the network; set BEI_ALLOW_PRIVATE_URLS=true to allow it"
            )
    return client.build_request(
        "GET",
        url.copy_with(host=addresses[0]),
        headers={"host": url.netloc.decode()},
        extensions={"sni_hostname": url.host},
    )


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Not private, loopback, link-local (where clouds keep their metadata), reserved or multicast; nor one of IPv6 that
    stands for such an address of IPv4."""
    if not address.is_global or address.is_multicast or address == _AZURE_HOST or getattr(address, "is_site_local", 0):
        return False
    return address.version == 4 or all(map(is_public, _ipv4_within(address)))


def _ipv4_within(address: IPv6Address) -> Iterator[IPv4Address]:
    yield from filter(None, (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())))
    if any(address in network for network in _TRANSLATED):
        yield IPv4Address(int(address) & 0xFFFFFFFF)


def _save(response: httpx.Response, file: IO[bytes], url: str, max_bytes: int) -> None:
    stated, received, logged = int(response.headers.get("content-length", 0)), 0, time.monotonic()
    for chunk in response.iter_raw(_CHUNK):
        received += len(chunk)
        if max(received, stated) > max_bytes:
            raise SetupError(f"{url} is larger than {max_bytes} bytes; raise BEI_MAX_DOWNLOAD_BYTES to allow it")
        file.write(chunk)
        if time.monotonic() - logged > _PROGRESS_SECONDS:
            logged = time.monotonic()
            log.info("downloading: %d MB of %s", received >> 20, f"{stated >> 20} MB" if stated else "unknown")


def _unpack(tar: tarfile.TarFile, folder: Path, max_bytes: int) -> None:
    unpacked = 0
    for count, member in enumerate(tar):
        name = PurePosixPath(member.name)
        if count >= _MAX_MEMBERS:
            raise SetupError(f"the archive holds more than {_MAX_MEMBERS} files; it is not unpacked")
        if name.is_absolute() or ".." in name.parts:
            raise SetupError(
                f"the archive holds {short(member.name)}, a path outside its own folder; it is not unpacked"
            )
        if not (member.isfile() or member.isdir()) or member.issparse():
            raise SetupError(
                f"the archive holds {short(member.name)}, a link or device, or a file with holes; it is not unpacked"
            )
        unpacked += member.size
        if unpacked > max_bytes:
            raise SetupError(f"the archive unpacks to more than {max_bytes} bytes; see BEI_MAX_DOWNLOAD_BYTES")
        if member.isfile() and name.suffix in _WANTED:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, _CHUNK)
        tar.members.clear()  # else it keeps them all


def _strip_top(folder: Path) -> None:
    """Archives often hold one folder that holds everything."""
    children = list(folder.iterdir())
    if len(children) == 1 and children[0].is_dir():
        top = children[0].rename(folder / ".top")  # a child may have its name
        for child in top.iterdir():
            child.rename(folder / child.name)
        top.rmdir()
