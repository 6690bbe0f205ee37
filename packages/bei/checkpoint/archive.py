"""A tar.gz from an address that a config names: bounded, never from inside the network, never outside its folder."""

import gzip
import logging
import re
import shutil
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn

import httpx

from bei.checkpoint.fetched import HEADS, PICKLES, VOCABULARIES
from bei.checkpoint.pace import kept_pace
from bei.checkpoint.retries import GaveUp, persist, status_passes
from bei.errors import SetupError, one_line, short, why
from bei.progress import Stage
from bei.settings.secrets import without_secrets

log = logging.getLogger("bei")

_WANTED = (
    *("*.json", "*.safetensors", *PICKLES, *HEADS, *VOCABULARIES),
    *("artifact.metadata", "README.md", "chat_template.jinja"),
)
_MAX_REDIRECTS = 5
_MAX_MEMBERS = 10_000
_SILENCE = 60  # seconds that a server may say nothing; then the rest is asked for, well within pace.WINDOW_SECONDS
_CHUNK = 1 << 20
# IANA's registries of special addresses, whatever edition of them this Python has. Of IPv6 nothing else than 2000::/3
# is given out, so what is not in it is no public address, known as special or not.
_AZURE_HOST = "168.63.129.16/32"  # of every virtual machine there
_INSIDE_IPV4 = (
    *map(ip_network, ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12")),
    *map(ip_network, ("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15")),
    *map(ip_network, ("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3", _AZURE_HOST)),
)
_PUBLIC_IPV6 = ip_network("2000::/3")
_SPECIAL_IPV6 = tuple(map(ip_network, ("2001::/23", "2001:db8::/32", "3fff::/20")))  # the first holds Teredo
_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052: an address of IPv4 is its end


def download(url: str, folder: Path, *, max_bytes: int, allow_private: bool) -> None:
    """Unpack the JSON files and weights of the tar.gz at `url` into `folder`.

    `max_bytes` bounds both what is sent and what is unpacked. Raises SetupError, which shows no more of the address
    than is no secret.
    """
    shown = without_secrets(url)
    with tempfile.TemporaryDirectory(dir=folder) as place, tempfile.TemporaryDirectory(dir=folder) as content:
        archive = Path(place) / "archive.tar.gz"
        _fetch(url, archive, shown, max_bytes=max_bytes, allow_private=allow_private)
        unpack(archive, Path(content), max_bytes=max_bytes, shown=shown)
        for child in _top(Path(content)).iterdir():
            child.rename(folder / child.name)


def _fetch(url: str, archive: Path, shown: str, *, max_bytes: int, allow_private: bool) -> None:
    partial = _Partial(archive)

    def attempt() -> None:
        try:
            with _get(url, allow_private, partial.asks()) as response, partial.opened(response) as file:
                _save(response, file, shown, max_bytes)
        except httpx.HTTPStatusError as exc:
            if exc.response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                partial.begin_again()
            raise

    def save() -> None:
        persist(
            attempt,
            passes=_passes,
            say=lambda error: f"{shown} breaks off ({one_line(_said(error))})",
            progress=partial.size,
        )

    try:
        kept_pace(save, archive.parent, shown)
    except GaveUp as exc:
        raise SetupError(
            f"{shown} cannot be downloaded: {one_line(_said(exc.error))} ({exc.tries} tries in a row)"
        ) from None
    except (httpx.HTTPError, OSError) as exc:
        raise SetupError(f"{shown} cannot be downloaded: {one_line(_said(exc))}") from None
    except (httpx.InvalidURL, ValueError):
        raise SetupError(f"{shown} cannot be downloaded: it is no address, or leads to none") from None


def _passes(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return status_passes(error.response.status_code)
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def _said(error: BaseException) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"{error.response.status_code} {error.response.reason_phrase}"
    return why(error)


class _Partial:
    """A partly downloaded file. The rest of it is requested, if the file is still the same (RFC 9110, 13.1.5)."""

    def __init__(self, path: Path):
        self._path, self._validator = path, ""

    def size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def asks(self) -> dict[str, str]:
        """Headers of the next request. Without a validator the file could be half of one and half of another."""
        has = self.size()
        return {"range": f"bytes={has}-", "if-range": self._validator} if has and self._validator else {}

    def opened(self, response: httpx.Response) -> IO[bytes]:
        """The file at the place where this answer goes on, which is its start where the server sends the whole."""
        etag = response.headers.get("etag", "")
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            self._validator = "" if etag.startswith("W/") else etag or response.headers.get("last-modified", "")
            return self._path.open("wb")
        begins = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
        is_same = etag in ("", self._validator) or not self._validator.startswith('"')
        if begins is None or int(begins[1]) != self.size() or not is_same:
            self.begin_again()
        return self._path.open("ab")

    def begin_again(self) -> NoReturn:
        """Drop what came. Raises an error that passes."""
        self._path.unlink(missing_ok=True)
        raise httpx.RemoteProtocolError("another part came than was asked for")


def unpack(archive: Path, folder: Path, *, max_bytes: int, shown: str) -> None:
    """The JSON and safetensors files of a tar.gz, under `folder`. Raises SetupError, which calls it `shown`."""
    try:
        with _InParts(archive) as content, tarfile.open(fileobj=content, mode="r:") as tar:
            _unpack(tar, folder, max_bytes)
    except RecursionError:
        raise SetupError(f"{shown} is not unpacked: a file in it has headers of headers") from None
    except OSError as exc:
        if exc.errno is None:
            raise SetupError(f"{shown} is not a whole tar.gz: {one_line(exc)}") from None
        raise SetupError(f"{shown} cannot be unpacked: {why(exc)}") from None
    except (tarfile.TarError, EOFError, ValueError, OverflowError, zlib.error) as exc:
        raise SetupError(f"{shown} is not a whole tar.gz: {one_line(exc)}") from None


class _InParts(gzip.GzipFile):
    """The file that tarfile reads from. tarfile takes a member's extended header into memory at once, whatever its
    stated size; no part of a model's archive is larger than a megabyte."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _CHUNK:
            raise SetupError(f"the archive has a header of {size} bytes; it is not unpacked")
        return super().read(size)


@contextmanager
def _get(url: str, allow_private: bool, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
    """The answer after redirects, each of them checked like the first."""
    with httpx.Client(timeout=httpx.Timeout(30, read=_SILENCE), trust_env=allow_private, headers=headers) as client:
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
        raise SetupError(f"{url.host} cannot be resolved: {one_line(exc)}") from None
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
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _INSIDE_IPV4)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    if address not in _PUBLIC_IPV6 or any(address in network for network in _SPECIAL_IPV6):
        return False
    return address.sixtofour is None or is_public(address.sixtofour)


def _save(response: httpx.Response, file: IO[bytes], url: str, max_bytes: int) -> None:
    received = file.tell()
    length = response.headers.get("content-length")
    stated = received + int(length) if length else 0
    with Stage("downloading", stated or None, done=received) as stage:
        for chunk in response.iter_raw():
            received += len(chunk)
            if max(received, stated) > max_bytes:
                raise SetupError(f"{url} is larger than {max_bytes} bytes; raise BEI_MAX_DOWNLOAD_BYTES to allow it")
            file.write(chunk)
            stage.add(len(chunk))


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
        is_wanted = member.isfile() and _is_wanted(name)
        source = tar.extractfile(member) if is_wanted else None
        if source is not None:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, _CHUNK)
        tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all; typeshed leaves the list out


def _is_wanted(name: PurePosixPath) -> bool:
    return any(map(name.match, _WANTED))


def _top(folder: Path) -> Path:
    """Where the files are: archives often hold one folder that holds everything."""
    children = list(folder.iterdir())
    return children[0] if len(children) == 1 and children[0].is_dir() else folder
