"""A canary in every place of a secret: it is in no log, answer, error, or `bei info`."""

import asyncio
import contextvars
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import httpx
import huggingface_hub
import pytest
import yaml
from click.testing import CliRunner

from bei import api, cli, logs
from bei.api import Call
from bei.checkpoint import retries
from bei.checkpoint.sources import fetch
from bei.engines.null import NullEngine
from bei.errors import SetupError
from bei.serving.registry import Registry
from bei.serving.service import Service
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.running import Running

CANARY = "canary-7f3a91"
ADDRESS = f"https://user:{CANARY}@127.0.0.1:1/model.tar.gz?X-Signature={CANARY}#{CANARY}"


def config(source: str, repo: str) -> dict:
    repository = {"source": source, "repo": repo}
    return {"trt_llm": {"build": {"base_model": "encoder_bert", "checkpoint_repository": repository}}}


@pytest.fixture
def file(tmp_path, tiny_folder) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tiny_config(tiny_folder)))
    return file


def test_info_and_build_show_no_secret(file, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"{CANARY}\n")
    secrets = {"BEI_API_KEY": CANARY, "HF_TOKEN": CANARY, "TRUSS_SECRET_hf_access_token": CANARY}
    for arguments in (["info"], ["info", "--json"], ["build"], ["info", "--log-level", "debug"]):
        command = [*arguments, "--config", str(file), "--engine", "null"]
        result = CliRunner().invoke(cli.main, command, env={**secrets, "BEI_API_KEY_FILE": str(keys)})
        assert result.exit_code == 0, result.output
        assert CANARY not in result.output
    shown = CliRunner().invoke(cli.main, ["info", "--json", "--config", str(file), "--engine", "null"], env=secrets)
    assert json.loads(shown.stdout)["settings"]["api_key"] == ["**********"]


def test_settings_show_no_secret():
    environ = {"HF_TOKEN": CANARY, "BEI_API_KEY": CANARY}
    settings = Settings.load(config("REMOTE_URL", ADDRESS), environ=environ)
    shown = f"{settings!r} {settings.model_dump(mode='json')} {settings.served_model_name} {settings.public_repo}"
    assert CANARY not in shown.replace(repr(ADDRESS), "")  # `repo` itself is the address that is fetched
    assert settings.served_model_name == "https://127.0.0.1:1/model.tar.gz"


@pytest.mark.parametrize(
    "environ",
    [
        {"BEI_API_KEY": f"{CANARY} blank"},
        {"BEI_API_KEY": f"{CANARY},,x"},
        {"BEI_API_KEY": f"{CANARY}é"},
        {"BEI_API_KEY": ""},
        {"BEI_API_KEY_FILE": "KEYS"},
        {"BEI_REPO": f"https://{CANARY}@hub/x", "BEI_PORT": "x"},
    ],
)
def test_a_wrong_secret_is_not_quoted(tmp_path, environ):
    keys = tmp_path / "keys"
    keys.write_text(f"good\n{CANARY} blank\n")
    given = {name: str(keys) if value == "KEYS" else value for name, value in environ.items()}
    with pytest.raises(SetupError) as caught:
        Settings.load(tiny_config(), environ=given)
    assert CANARY not in str(caught.value)


def test_a_repository_that_is_an_address_is_not_quoted_whole():
    with pytest.raises(SetupError) as caught:
        Settings.load(config("HF", ADDRESS), environ={})
    assert CANARY not in str(caught.value)


def test_no_answer_holds_a_secret(tiny_checkpoint):
    environ = {"HF_TOKEN": CANARY, "BEI_API_KEY": f"{CANARY},key"}
    service = Service(Settings.load(config("REMOTE_URL", ADDRESS), environ=environ))
    service.start(tiny_checkpoint, NullEngine(tiny_checkpoint))
    for route in api.ROUTES:
        for body in (json.dumps(route.example).encode(), b"{", b'{"prompt_name": "x"}'):
            for key in ("key", "wrong"):
                call = Call(route.method, route.path, body, {"authorization": f"Bearer {key}"})
                reply = asyncio.run(api.answer(Registry(service), call))
                assert CANARY not in f"{reply.headers} {reply.body}"
    service.close()


@pytest.fixture
def web():
    """A server of answers by status: /404, /200 (no archive), /302 (into the network)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status = int(self.path[1:4])
            self.send_response(status)
            if status == 302:
                self.send_header("location", f"http://x:{CANARY}@127.0.0.1:{server.server_port}/302?{CANARY}")
            self.send_header("content-length", "3")
            self.end_headers()
            self.wfile.write(b"abc")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/404", "/200", "/302", "/500"])
@pytest.mark.parametrize("limits", [{}, {"max_download_bytes": 1}, {"allow_private_urls": False}])
def test_an_address_that_fails_is_shown_without_its_secrets(tmp_path, caplog, web, monkeypatch, path, limits):
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.01)
    caplog.set_level(logging.DEBUG, "bei")
    url = f"http://user:{CANARY}@127.0.0.1:{web}{path}?token={CANARY}"
    flags = {"allow_private_urls": True, "cache_dir": tmp_path, **limits}
    with pytest.raises(SetupError) as caught:
        fetch(Settings.load(config("REMOTE_URL", url), environ={}, **flags))
    assert CANARY not in f"{caught.value} {caplog.text}"


@pytest.mark.parametrize("source", ["S3", "GCS", "AZURE"])
@pytest.mark.parametrize("when", ["filesystem", "glob"])
def test_a_store_s_error_that_quotes_the_secret(monkeypatch, tmp_path, caplog, source, when):
    secret = json.dumps({"aws_access_key_id": "id", "aws_secret_access_key": CANARY, "account_key": CANARY})

    def fail(*args, **options):
        raise PermissionError("x" * 110 + f" key {CANARY} of {secret} is wrong")

    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(fsspec, "filesystem", fail if when == "filesystem" else lambda *a, **o: memory)
    monkeypatch.setattr(memory, "glob", fail)
    wanted = Settings.load(
        config(source, "memory://a/b"), environ={}, secrets={"hf_access_token": secret}, cache_dir=tmp_path
    )
    with pytest.raises(SetupError) as caught:
        fetch(wanted)
    assert CANARY[:6] not in f"{caught.value} {caplog.text}"


def test_a_hub_that_quotes_the_token(monkeypatch, tmp_path, caplog):
    def fail(*args, local_files_only=False, **options):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("none")
        raise OSError(f"token {CANARY} is wrong")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SetupError) as caught:
        fetch(Settings.load(config("HF", "org/tiny"), environ={"HF_TOKEN": CANARY}))
    assert CANARY not in f"{caught.value} {caplog.text}"


def test_a_server_logs_no_secret(tiny_folder):
    running = Running(tiny_folder, api_key=f"k0,{CANARY}")
    running.wait_for_health()
    for headers in ({"authorization": f"Bearer {CANARY}"}, {"authorization": f"Bearer wrong-{CANARY}"}, {}):
        httpx.post(f"{running.url}/embed", json={"inputs": "a"}, headers=headers)
        httpx.post(f"{running.url}/embed", content=b"{", headers=headers)
    status, log = running.stop()
    assert status == 0
    assert CANARY not in log


# -- keys ------------------------------------------------------------------------------------------------------------


def keys(**given) -> list[str]:
    return [key.get_secret_value() for key in Settings.load(tiny_config(), environ={}, **given).api_key]


def test_keys_of_every_way(tmp_path):
    """A flag does not replace the keys of a variable, whose users would be locked out."""
    file, other = tmp_path / "keys", tmp_path / "other"
    file.write_text("# of team a\nk1\n\n  k2  \n")
    other.write_text("k3\n")
    assert keys() == []
    assert keys(api_key="k0") == ["k0"]
    assert keys(api_key="k0, k9") == ["k0", "k9"]
    assert keys(api_key_file=file) == ["k1", "k2"]
    assert keys(api_key="k0", api_key_file=file) == ["k0", "k1", "k2"]
    environ = {"BEI_API_KEY": "k8,k9", "BEI_API_KEY_FILE": str(other)}
    found = Settings.load(tiny_config(), environ=environ, api_key="k0", api_key_file=file).api_key
    assert {key.get_secret_value() for key in found} == {"k0", "k1", "k2", "k3", "k8", "k9"}


@pytest.mark.parametrize("content", [None, "", "# none\n\n", "a b\n", "k1,k2\n", "é\n", "\0\n"])
def test_a_file_of_keys_that_would_let_nobody_or_anybody_in(tmp_path, content):
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SetupError, match="setting api_key_file"):
        keys(api_key_file=file)


@pytest.mark.parametrize("content", ["", " ", ",", "k1,", "a b", "é", "a\nb"])
def test_a_key_that_no_header_can_carry_stops_the_start(tmp_path, content):
    (file := tmp_path / "keys").write_text("k1")
    for given in ({}, {"api_key_file": file}):
        with pytest.raises(SetupError, match="setting api_key: a key is printable ASCII"):
            keys(api_key=content, **given)


# -- logs ------------------------------------------------------------------------------------------------------------

HOSTILE = "GET /x\n12:00:00 INFO all is well\r\x1b[2J\x00\x85\u2028\u202e"


def record(*args: object, exc_info: object = None) -> logging.LogRecord:
    return logging.LogRecord("bei", logging.INFO, "", 0, "path %s", args, exc_info)


def text(given: logging.LogRecord) -> str:
    """The log of a server that answers nobody."""
    return contextvars.Context().run(logs._Text("%(levelname)s %(message)s").format, given)


def test_a_log_line_stays_one_line():
    line = text(record(HOSTILE))
    assert line.isprintable()
    assert line.startswith(r"INFO path GET /x\n12:00:00 INFO all is well\r\x1b[2J\x00\x85")
    assert json.loads(logs._JSON().format(record(HOSTILE)))["message"] == f"path {HOSTILE}"
    assert "\n" not in logs._JSON().format(record(HOSTILE))


def test_a_traceback_cannot_pass_for_a_log_line():
    try:
        raise ValueError(HOSTILE)
    except ValueError as exc:
        given = record("a", exc_info=(type(exc), exc, exc.__traceback__))
    first, *rest = text(given).splitlines()
    assert first == "INFO path a"
    assert rest
    assert all(line.startswith("  ") and line.isprintable() for line in rest)
