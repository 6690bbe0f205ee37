"""Downloads over a network that breaks: cut, silent, busy, or of a file that changes meanwhile."""

import errno
import json
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import fsspec
import httpx
import pytest

from bei.checkpoint import archive, pace, retries
from bei.checkpoint.retries import GaveUp, passes, persist
from bei.checkpoint.sources import fetch
from bei.errors import SetupError
from bei.settings import Settings
from tests.support.waiting import LIMIT

PAGE = random.Random(0).randbytes(3_000_000)


@dataclass
class Web:
    """Serves `page`, and does to each request in turn what `script` says; then all is well."""

    page: bytes = PAGE
    etag: str = '"one"'
    script: list[str] = field(default_factory=list)
    ignores_ranges: bool = False
    asked: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/model.tar.gz?signature=secret"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        self.server.web.asked.append({name.lower(): value for name, value in self.headers.items()})
        act = self.server.web.script.pop(0) if self.server.web.script else ""
        if act.isdecimal():
            self.refuse(int(act))
        elif act == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.send(act)

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.send_header("retry-after", "0")
        self.end_headers()

    def send(self, act: str) -> None:
        if act.startswith("change"):
            self.server.web.page, self.server.web.etag = self.server.web.page[::-1], '"two"'
        start = self.start()
        content = self.server.web.page[start:]
        self.send_response(206 if start else 200)
        if self.server.web.etag:
            self.send_header("etag", self.server.web.etag)
        if start:
            first = start - 1 if act == "shift" else start
            self.send_header(
                "content-range", f"bytes {first}-{len(self.server.web.page) - 1}/{len(self.server.web.page)}"
            )
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if "cut" in act or act == "stall" else content)
        if act == "stall":
            time.sleep(2)  # the server stalls

    def start(self) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        same = self.headers.get("if-range") == self.server.web.etag
        return int(asked[1]) if asked and same and not self.server.web.ignores_ranges else 0


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.web = web
    server.daemon_threads = True
    web.port = server.server_port
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield web
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def brief_pauses(monkeypatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.01)


def fetched(web: Web, tmp_path: Path, most: int = 10**7) -> bytes:
    file = tmp_path / "archive.tar.gz"
    archive._fetch(web.url, file, "http://shown", max_bytes=most, allow_private=True)
    return file.read_bytes()


# -- archives --------------------------------------------------------------------------------------------------------


def test_a_cut_download_goes_on_where_it_was(web, tmp_path, caplog):
    web.script = ["cut", "cut", "cut"]
    assert fetched(web, tmp_path) == PAGE
    size = len(PAGE)
    places = [size // 2, size * 3 // 4, size * 7 // 8]
    assert [asked.get("range") for asked in web.asked] == [None, *(f"bytes={place}-" for place in places)]
    assert [asked.get("if-range") for asked in web.asked] == [None, *['"one"'] * 3]
    assert caplog.text.count("http://shown breaks off (") == 3
    assert "signature" not in caplog.text


def test_each_part_that_came_starts_the_count_anew(web, tmp_path):
    web.script = ["cut"] * (3 * retries.TRIES)
    assert fetched(web, tmp_path) == PAGE


def test_a_server_that_falls_silent_is_asked_for_the_rest(web, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_SILENCE", 0.3)
    web.script = ["stall"]
    assert fetched(web, tmp_path) == PAGE
    assert web.asked[1]["range"] == f"bytes={len(PAGE) // 2}-"


@pytest.mark.parametrize("script", [["cut", "change"], ["cut", "change cut", ""], ["drop", "cut", "503", "change"]])
def test_a_file_that_changed_begins_again(web, tmp_path, script):
    web.script = script
    assert fetched(web, tmp_path) == PAGE[::-1]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_validator_it_begins_again(web, tmp_path, etag):
    """The rest could be that of another file."""
    web.etag, web.script = etag, ["cut", "cut"]
    assert fetched(web, tmp_path) == PAGE
    assert all("range" not in asked for asked in web.asked)


def test_a_server_that_knows_no_ranges_sends_it_whole(web, tmp_path):
    web.ignores_ranges, web.script = True, ["cut", "cut"]
    assert fetched(web, tmp_path) == PAGE
    assert web.asked[2]["range"] == f"bytes={len(PAGE) // 2}-"


def test_a_part_from_another_place_is_not_taken(web, tmp_path):
    web.script = ["cut", "shift"]
    assert fetched(web, tmp_path) == PAGE
    assert "range" not in web.asked[2]


def test_a_range_that_is_not_there_begins_again(web, tmp_path):
    """As when all had come but the end of the message."""
    web.script = ["cut", "416"]
    assert fetched(web, tmp_path) == PAGE
    assert ["range" in asked for asked in web.asked] == [False, True, False]


@pytest.mark.parametrize("status", ["400", "401", "403", "404", "410", "501"])
def test_a_refusal_is_not_asked_again(web, tmp_path, status):
    web.script = [status] * 9
    with pytest.raises(SetupError, match=rf"^http://shown cannot be downloaded: {status} [\w ]+$"):
        fetched(web, tmp_path)
    assert len(web.asked) == 1


@pytest.mark.parametrize("status", ["408", "429", "500", "502", "503", "504"])
def test_a_busy_server_is_asked_again(web, tmp_path, status):
    web.script = [status, status]
    assert fetched(web, tmp_path) == PAGE
    assert len(web.asked) == 3


@pytest.mark.parametrize(("act", "why"), [("503", "503 Service Unavailable"), ("drop", "[Ss]erver disconnected.*")])
def test_giving_up_is_a_line_with_the_tries(web, tmp_path, act, why):
    web.script = [act] * 99
    with pytest.raises(SetupError, match=rf"^http://shown cannot be downloaded: {why} \(5 tries in a row\)$"):
        fetched(web, tmp_path)
    assert len(web.asked) == retries.TRIES == 5


def test_the_bound_holds_over_all_parts(web, tmp_path):
    web.script = ["cut", "cut"]
    with pytest.raises(SetupError, match="is larger than 2500000 bytes"):
        fetched(web, tmp_path, most=2_500_000)
    web.script, web.asked, web.etag = ["cut", "cut"], [], ""
    (tmp_path / "archive.tar.gz").unlink()
    with pytest.raises(SetupError, match="is larger than 2500000 bytes"):
        fetched(web, tmp_path, most=2_500_000)


def test_each_try_has_its_address_checked(web, tmp_path, monkeypatch):
    """A name that leads into the network at the second look-up is not followed there."""
    connected, addresses = [], iter(["203.0.114.7", "127.0.0.1"])
    monkeypatch.setattr(archive.socket, "getaddrinfo", lambda host, port, **_: [(2, 1, 6, "", (next(addresses), port))])

    def send(client, request, **more):
        connected.append(request.url.host)
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx.Client, "send", send)
    with pytest.raises(SetupError, match=r"127\.0\.0\.1, an address inside the network"):
        archive._fetch("https://rebinding.test/", tmp_path / "a", "shown", max_bytes=1, allow_private=False)
    assert connected == ["203.0.114.7"]


def test_what_asks_for_time_gets_it():
    """And not more than the longest pause: the pace of a download is kept meanwhile."""
    slept: list[float] = []

    def attempt() -> None:
        headers = {"retry-after": "7" if not slept else "7000"}
        response = httpx.Response(503, headers=headers, request=httpx.Request("GET", "http://x"))
        response.raise_for_status()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(GaveUp):
        patch.setattr(time, "sleep", slept.append)
        persist(attempt, passes=archive._passes, say=str, tries=3)
    assert slept == [7, retries.LONGEST_PAUSE] == [7, 30]


def test_pauses_grow():
    slept: list[float] = []

    def attempt() -> None:
        raise OSError("gone")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(GaveUp, match=r"gone \(9 tries\)"):
        patch.setattr(retries, "FIRST_PAUSE", 1.0)
        patch.setattr(time, "sleep", slept.append)
        persist(attempt, passes=passes, say=str, tries=9)
    assert len(slept) == 8
    assert all(least <= pause <= least + 1 for least, pause in zip((1, 2, 4, 8, 16, 30, 30, 30), slept, strict=True))


def test_a_file_that_begins_again_keeps_its_pace(tmp_path, monkeypatch):
    """It is shorter than it was; what comes from there on is what counts."""
    monkeypatch.setattr(pace, "WINDOW_SECONDS", 2)
    monkeypatch.setattr(pace, "WINDOW_BYTES", 100)
    file, is_whole, now = tmp_path / "archive", threading.Event(), 0.0
    sizes = iter([10_000] * 5 + [*range(0, 2000, 200)])

    def look(downloads, seconds):
        """The file is so large at the next look."""
        nonlocal now
        now += seconds
        if (size := next(sizes, None)) is None:
            is_whole.set()
            return wait(downloads, LIMIT)
        file.write_bytes(bytes(size))
        return wait(downloads, 0)

    monkeypatch.setattr(pace, "wait", look)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now))
    pace.kept_pace(lambda: is_whole.wait(LIMIT), tmp_path, "it")
    assert now > 2 * pace.WINDOW_SECONDS
    assert file.stat().st_size == 1800


# -- buckets and the hub ---------------------------------------------------------------------------------------------


class Store:
    """The memory filesystem of fsspec, whose next calls fail as `errors` says, half of a file later."""

    def __init__(self, *errors: Exception):
        self._memory, self.errors, self.got = fsspec.filesystem("memory"), list(errors), []

    def __getattr__(self, name: str):
        return getattr(self._memory, name)

    def glob(self, pattern: str, detail: bool):
        if self.errors and str(self.errors[0]) == "listing":
            raise self.errors.pop(0)
        return self._memory.glob(pattern, detail=detail)

    def get_file(self, path: str, target: str) -> None:
        self.got.append(path)
        content = self._memory.cat_file(path)
        error = self.errors.pop(0) if self.errors else None
        Path(target).write_bytes(content[: len(content) // 2] if error else content)
        if error is not None and str(error) != "quiet":
            raise error


@pytest.fixture
def store(tiny_folder, monkeypatch) -> Iterator[Store]:
    store = Store()
    store.put(str(tiny_folder), "/bucket/path", recursive=True)
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol, **options: store)
    yield store
    store.rm("/bucket", recursive=True)


def in_bucket(tmp_path: Path) -> Settings:
    repository = {"source": "S3", "repo": "memory://bucket/path"}
    config = {"trt_llm": {"build": {"base_model": "encoder_bert", "checkpoint_repository": repository}}}
    secrets = {"hf_access_token": json.dumps({"aws_secret_access_key": "canary"})}
    return Settings.load(config, secrets=secrets, environ={}, cache_dir=tmp_path / "cache")


class Refused(Exception):
    """As gcsfs and azure say it."""

    def __init__(self, code: int):
        super().__init__("no")
        self.code = code


@pytest.mark.parametrize(
    "errors",
    [
        [ConnectionResetError("listing"), ConnectionResetError("canary"), OSError("quiet")],
        [TimeoutError("listing"), Refused(503), OSError(errno.EIO, "reset")],
        [RuntimeError("payload is not complete")] * (retries.TRIES - 1),
    ],
)
def test_a_bucket_that_breaks_off_is_asked_again(store, tmp_path, tiny_folder, caplog, errors):
    store.errors[:] = errors
    folder = fetch(in_bucket(tmp_path)).folder
    for file in folder.rglob("*.*"):
        assert file.read_bytes() == (tiny_folder / file.relative_to(folder)).read_bytes()
    broken = [error for error in errors if str(error) != "listing"]
    assert len(store.got) == len(set(store.got)) + len(broken), "files that came whole are not asked for again"
    assert caplog.text.count("memory://bucket/path breaks off (") == len(errors)
    assert "canary" not in caplog.text


@pytest.mark.parametrize("error", [PermissionError("no"), FileNotFoundError("gone"), Refused(403), ValueError("no")])
def test_a_bucket_that_refuses_is_not_asked_again(store, tmp_path, error):
    store.errors[:] = [error] * 9
    with pytest.raises(SetupError, match=r"^memory://bucket/path cannot be read .*; check the path and the secret$"):
        fetch(in_bucket(tmp_path))
    assert len(store.got) == 1


def test_giving_up_on_a_bucket_is_a_line_with_the_tries(store, tmp_path):
    store.errors[:] = [ConnectionResetError("canary\nreset")] * 99
    with pytest.raises(SetupError) as caught:
        fetch(in_bucket(tmp_path))
    reason = "ConnectionResetError: ***, 5 tries in a row"
    assert str(caught.value) == f"memory://bucket/path cannot be read ({reason}); check the network"


def test_what_does_not_pass():
    final = (OSError(errno.ENOSPC, "full"), SetupError("no"), KeyError("x"), Refused(404), KeyboardInterrupt())
    assert [passes(error) for error in final] == [False] * len(final)
    assert all(passes(error) for error in (OSError("reset"), EOFError(), Refused(500), Refused(429), Refused(200)))
