"""The hub on a bad network: silent, gone half way, or lacking the file."""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import safetensors.torch
import torch
import yaml

from tests.support.waiting import LIMIT

COMMIT, CONVERTED = "a" * 40, "c" * 40
MODEL = {"source": "HF", "repo": "org/tiny"}


class Silence:
    """A hub that accepts connections and never answers."""

    def __init__(self, listener: socket.socket):
        self._listener, self.url = listener, f"http://127.0.0.1:{listener.getsockname()[1]}"

    def calls(self) -> int:
        """The connections so far."""
        self._listener.setblocking(False)
        count = 0
        with suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()
                count += 1
        return count


@contextmanager
def silent() -> Iterator[Silence]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield Silence(listener)


class Hub(ThreadingHTTPServer):
    """Serves a folder as org/tiny, and records the requests."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.asked, self.breaks = folder, [], False
        self.headers, self.repository, self.entry, self.moves = {}, {}, {}, False
        self.breaking, self.busy, self.cuts = "model.safetensors", 0, 0
        self.requests: list[dict] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append((path, {**self.headers, "method": self.command}))
        if self.server.breaks:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if self.server.moves and path.startswith("/api/"):
            self.send_response(307)
            self.send_header("Location", path.replace("/api/", "/other/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self._content(path.replace("/other/", "/api/"))
        is_breaking = with_body and path.endswith(self.server.breaking)
        if is_breaking and self.server.busy:
            self.server.busy -= 1
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0]) if "Range" in self.headers else 0
        content = content and content[start:]
        self.send_response(404 if content is None else 206 if start else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        commit = CONVERTED if CONVERTED in path else COMMIT
        stated = {"ETag": f'"{path.replace("/", "-")}"', "X-Repo-Commit": commit} | self.server.headers
        for name, value in stated.items():
            self.send_header(name, value)
        self.end_headers()
        if is_breaking and content and self.server.cuts:
            self.server.cuts -= 1
            content = content[: len(content) // 2]
        if with_body and content:
            self.wfile.write(content)

    def _content(self, path: str) -> bytes | None:
        if path.startswith("/api/models/org/tiny/discussions") or "/commits/" in path:
            return self._of_requests(path)
        root = self._root(path)
        names = [str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()]
        if path in ("/api/models/org/tiny", "/api/models/org/tiny/revision/main"):
            files = [{"rfilename": name} for name in names]
            return json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": files} | self.server.repository).encode()
        if path.startswith("/api/models/org/tiny/tree/"):
            sizes = {name: (root / name).stat().st_size for name in names}
            entries = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
            return json.dumps([entry | self.server.entry for entry in entries]).encode()
        name = path.removeprefix(f"/org/tiny/resolve/{COMMIT}/").removeprefix(f"/org/tiny/resolve/{CONVERTED}/")
        return (root / name).read_bytes() if name in names else None

    def _root(self, path: str) -> Path:
        return self.server.folder.with_name("converted") if CONVERTED in path else self.server.folder

    def _of_requests(self, path: str) -> bytes | None:
        requests = self.server.requests
        if path.endswith("/discussions"):
            shown = [{key: value for key, value in of.items() if key != "parent"} for of in requests]
            counts = {"count": len(shown), "start": 0, "numClosedDiscussions": 0}
            return json.dumps({"discussions": shown, **counts}).encode()
        (number,) = re.findall(r"/commits/refs%2Fpr%2F(\d+)$", path)
        (parent,) = (of["parent"] for of in requests if of["num"] == int(number))
        commits = [{"id": id, "authors": [], "title": "x", "message": ""} for id in (CONVERTED, parent)]
        return json.dumps([{**of, "date": "2023-01-01T00:00:00.000Z"} for of in commits]).encode()


@pytest.fixture
def hub(tiny_folder, tmp_path) -> Iterator[Hub]:
    shutil.copytree(tiny_folder, tmp_path / "hub")
    for name in ("pytorch_model.bin", "modeling.py", "notes.txt"):
        (tmp_path / "hub" / name).write_text("not ours")
    with Hub(tmp_path / "hub") as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


INFO = """
import sys
from bei.checkpoint import hub, retries
retries.FIRST_PAUSE, hub._SECONDS = 0.01, float(sys.argv.pop(1))
from bei.cli import main
main()
"""
HASTE = 1.0  # seconds, for a hub that says nothing


class Machine:
    """A machine on which `bei info` is run, with a cache of its own, and with brief pauses between its tries."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder, folder / "config.yaml"
        build = {"base_model": "encoder_bert", "checkpoint_repository": MODEL}
        self.config.write_text(yaml.safe_dump({"trt_llm": {"build": build}}))

    def info(self, endpoint: str, level: str = "warning", patience: float = LIMIT) -> tuple[int, str]:
        """Its status, and its log. A hub has so many seconds to answer."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(self.folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
        environment |= dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"), f"{patience:g}")
        environment["BEI_CACHE_DIR"] = str(self.folder / "cache")
        words = ["info", "--config", str(self.config), "--engine", "null", "--log-level", level]
        command = [sys.executable, "-c", INFO, str(patience), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stderr


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def test_a_silent_hub_and_nothing_cached_is_a_line(machine):
    with silent() as hub:
        status, log = machine.info(hub.url, patience=HASTE)
    assert status == 2
    assert log.count("the hub does not answer: it is asked again") == 2
    assert log.splitlines()[-1].startswith("bei: org/tiny cannot be downloaded")
    assert "Traceback" not in log


def test_what_is_cached_serves_beside_a_silent_hub(machine, hub):
    assert machine.info(hub.url)[0] == 0
    with silent() as silence:
        status, log = machine.info(silence.url, patience=HASTE)
        assert silence.calls() == 1
    assert status == 0
    assert log.partition("WARNING ")[2] == "the hub does not answer: using the cached org/tiny model=org/tiny\n"


def test_a_cache_without_what_changes_no_number_serves(machine, hub):
    """The cache was filled by another program, or by an older version that wanted fewer files."""
    for name in ("README.md", "onnx/config.json"):
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).write_text("{}")
    assert machine.info(hub.url)[0] == 0
    hub.breaks = True
    snapshot = machine.folder / "hf" / "hub" / "models--org--tiny" / "snapshots" / COMMIT
    (snapshot / "README.md").unlink()
    (snapshot / "onnx" / "config.json").unlink()
    status, log = machine.info(hub.url)
    assert status == 0, log
    assert "using the cached org/tiny" in log
    for name in ("modules.json", "tokenizer_config.json", "model.safetensors"):
        (snapshot / name).rename(snapshot / "away")
        status, log = machine.info(hub.url)
        assert status == 2, name
        assert "and is not in the cache, or not all of it" in log.splitlines()[-1]
        (snapshot / "away").rename(snapshot / name)


def test_a_connection_that_breaks_is_a_line(machine, hub):
    hub.breaks = True
    status, log = machine.info(hub.url)
    assert status == 2
    assert log.splitlines()[-1].startswith("bei: org/tiny cannot be downloaded")
    assert "Traceback" not in log


def test_a_hub_that_is_busy_is_asked_again(machine, hub):
    hub.busy = 2
    status, log = machine.info(hub.url)
    assert status == 0, log
    assert log.count("the hub breaks off (") == 2


def test_giving_up_on_the_hub_is_a_line_with_the_tries(machine, hub):
    hub.busy = 99
    status, log = machine.info(hub.url)
    assert status == 2
    last = log.splitlines()[-1]
    assert last.startswith("bei: org/tiny cannot be downloaded ("), log
    assert ", 3 tries in a row) and is not in the cache" in last
    assert "Traceback" not in log
    assert hub.busy == 99 - 3


def test_a_file_that_is_cut_goes_on_where_it_was(machine, hub):
    """The library keeps its parts of 10 MiB; that it does so is what this holds."""
    hub.breaking, hub.cuts = "big.json", 2
    (hub.folder / "big.json").write_bytes(b'"' + random.Random(0).randbytes(22_000_000).hex().encode() + b'"')
    status, log = machine.info(hub.url)
    assert status == 0, log
    asked = [dict(headers) for path, headers in hub.asked if path.endswith("big.json")]
    ranges = [{name.lower(): value for name, value in headers.items()}.get("range") for headers in asked]
    places = [int(asked[6:-1]) for asked in ranges if asked]
    assert len(places) == 2
    assert 0 < places[0] < places[1]
    (copy,) = (machine.folder / "hf").rglob("snapshots/*/big.json")
    assert copy.read_bytes() == (hub.folder / "big.json").read_bytes()


def test_the_hub_is_asked_for_the_model_and_nothing_else(machine, hub):
    assert machine.info(hub.url)[0] == 0
    paths = {path for path, _ in hub.asked}
    assert all(path.startswith(("/api/models/org/tiny", f"/org/tiny/resolve/{COMMIT}/")) for path in paths), paths
    assert [path for path in paths if path.endswith((".bin", ".py", ".txt"))] == []
    assert {headers["user-agent"].partition("/")[0] for _, headers in hub.asked} == {"bei"}
    told = [headers for _, headers in hub.asked if "torch" in str(headers) or "python" in str(headers)]
    assert told == []


@pytest.mark.parametrize(
    "said",
    [
        {"headers": {"ETag": '"{outside}"'}},
        {"headers": {"ETag": 'W/"../../../../stranger"'}},
        {"headers": {"X-Linked-Etag": "{outside}"}},
        {"headers": {"X-Repo-Commit": "../../../../stranger"}},
        {"repository": {"sha": "../../../../stranger"}},
        {"entry": {"lfs": {"oid": "{outside}", "size": 1, "pointerSize": 1}}},
        {"entry": {"path": "../../../../stranger.json"}},
    ],
)
def test_a_hub_that_names_places_outside_its_cache_is_refused(machine, hub, said):
    """The library makes paths of the hub's answers, and would write, or link, wherever they lead."""
    outside = machine.folder / "stranger"
    for name, values in json.loads(json.dumps(said).replace("{outside}", str(outside))).items():
        setattr(hub, name, values)
    before = set(machine.folder.iterdir())
    status, log = machine.info(hub.url)
    assert status == 2
    assert log.splitlines()[-1].startswith("bei: the hub "), log
    assert set(machine.folder.iterdir()) - before <= {machine.folder / "hf"}
    assert list((machine.folder / "hf").rglob("stranger*")) == []


def test_a_listing_is_a_listing_wherever_it_is(machine, hub):
    hub.moves = True
    status, log = machine.info(hub.url)
    assert status == 2
    assert "to what is no list of files" in log.splitlines()[-1]


# -- a repository without safetensors ----------------------------------------------------------------------------------

REQUEST = {
    **{"num": 8, "title": "Adding `safetensors` variant of this model", "status": "open", "isPullRequest": True},
    **{"author": {"name": "SFconvertbot"}, "repo": {"name": "org/tiny", "type": "model"}, "parent": COMMIT},
    "createdAt": "2023-01-01T00:00:00.000Z",
}


@pytest.fixture
def pickled(hub) -> Hub:
    """A hub whose main has pytorch_model.bin alone; `converted` has safetensors, too."""
    shutil.copytree(hub.folder, hub.folder.with_name("converted"))
    state = safetensors.torch.load_file(hub.folder / "model.safetensors")
    (hub.folder / "model.safetensors").unlink()
    torch.save(state, hub.folder / "pytorch_model.bin")
    return hub


def asked_for(hub: Hub, end: str) -> int:
    return sum(path.endswith(end) and headers["method"] == "GET" for path, headers in hub.asked)


@pytest.mark.parametrize(
    "changes",
    [
        None,
        {"author": {"name": "somebody"}},
        {"author": None},
        {"title": "Better weights"},
        {"parent": "b" * 40},
    ],
)
def test_files_of_torch_save_where_there_is_nothing_else(machine, pickled, changes):
    """Nothing else: no request of the converter's that follows main's newest commit."""
    pickled.requests = [] if changes is None else [{**REQUEST, **changes}]
    status, log = machine.info(pickled.url)
    assert status == 0, log
    assert "WARNING" not in log
    assert asked_for(pickled, "/pytorch_model.bin") == 1
    pickled.breaks = True
    status, log = machine.info(pickled.url)
    assert status == 0, log
    assert "using the cached org/tiny" in log


def test_the_hub_s_conversion_is_preferred(machine, pickled):
    pickled.requests = [{**REQUEST, "num": 7, "author": {"name": "somebody"}}, REQUEST]
    status, log = machine.info(pickled.url, "debug")
    assert status == 0, log
    assert log.count(f"org/tiny has no safetensors: using revision {CONVERTED}, the hub's conversion of it") == 1
    assert (asked_for(pickled, "/pytorch_model.bin"), asked_for(pickled, "/model.safetensors")) == (0, 1)
    discussions = asked_for(pickled, "/discussions")
    assert machine.info(pickled.url)[0] == 0
    assert asked_for(pickled, "/discussions") == discussions == 1
    pickled.breaks = True
    status, log = machine.info(pickled.url)
    assert status == 0, log


@pytest.mark.parametrize("requests", [{}, [7], [{**REQUEST, "createdAt": "x"}], [{**REQUEST, "num": "../../x"}]])
def test_requests_that_are_none(machine, pickled, requests):
    pickled.requests = requests
    status, log = machine.info(pickled.url)
    assert status == 0, log
