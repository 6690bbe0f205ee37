"""Each source becomes a folder, or one line that says what to do; no partial download remains."""

import errno
import gzip
import io
import json
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import fsspec
import httpx
import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from hypothesis import given
from hypothesis import strategies as st

from bei.checkpoint import archive, buckets, pace, retries, wheels
from bei.checkpoint.fetched import PICKLES, WANTED
from bei.checkpoint.load import read
from bei.checkpoint.sources import fetch, load
from bei.checkpoint.wheels import Wheel
from bei.errors import SetupError
from bei.settings import Settings
from tests.support.saved import settings, with_dense, without_safetensors
from tests.support.tiny_models import random_model, save

# -- wheels ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, tiny_folder, monkeypatch) -> Path:
    """An installed package that carries the tiny model, and raises when imported."""
    folder = tmp_path / "site" / "carrier" / "model"
    folder.parent.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    folder.symlink_to(tiny_folder)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = [path for end in ("*.json", "*.safetensors") for path in folder.rglob(end)]
    return {file.relative_to(folder).as_posix(): sha256(file.read_bytes()).hexdigest() for file in files}


def test_weights_inside_a_package(package, tmp_path, monkeypatch):
    known = hashes(package)
    monkeypatch.setitem(wheels.WHEELS, "org/tiny", (Wheel("absent", "x", known), Wheel("carrier", "model", known)))
    assert fetch(settings("HF", "org/tiny", tmp_path)).folder == package
    assert fetch(settings("HF", "org/tiny", tmp_path, revision="main")).folder == package


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "1_Pooling/config.json"])
def test_every_file_is_the_known_one(package, tmp_path, monkeypatch, name):
    """A changed file under a known name, an unknown file, and a missing one."""
    known = hashes(package)
    less = {key: digest for key, digest in known.items() if key != name}
    for files, message in (
        (
            {**known, name: "0" * 64},
            rf"'{name}' is not that of org/tiny \(sha256 \w+\); reinstall carrier",
        ),
        (less, f"'{name}' is not that of org/tiny"),
        ({**known, "more.json": "0" * 64}, "lacks more.json of org/tiny; reinstall carrier"),
    ):
        monkeypatch.setitem(wheels.WHEELS, "org/tiny", (Wheel("carrier", "model", files),))
        with pytest.raises(SetupError, match=message):
            fetch(settings("HF", "org/tiny", tmp_path))


def test_the_default_model_is_one_of_them():
    assert load(Settings.from_file(Path(__file__).parents[2] / "config.yaml", environ={})).max_tokens == 256


# -- Hugging Face ----------------------------------------------------------------------------------------------------


RESPONSE = httpx.Response(404, request=httpx.Request("GET", "https://hub.test"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError("no", response=RESPONSE), "org/tiny is not on the hub, or is private: .*set HF_TOKEN"),
        (GatedRepoError("no", response=RESPONSE), "org/tiny is gated: ask for access"),
        (RevisionNotFoundError("no", response=RESPONSE), "org/tiny has no revision 'v9'"),
        (
            LocalEntryNotFoundError("offline"),
            "cannot be downloaded .* and is not in the cache, or not all of it; check the network",
        ),
        (OSError("disk"), "cannot be downloaded"),
    ],
)
def test_what_the_hub_refuses(monkeypatch, tmp_path, error, message):
    def snapshot_download(*args, local_files_only=False, **kwargs):
        raise LocalEntryNotFoundError("nothing cached") if local_files_only else error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(SetupError, match=message) as caught:
        fetch(settings("HF", "org/tiny", tmp_path, revision="v9"))
    assert "\n" not in str(caught.value)


def test_the_hub_is_asked_for_what_we_read(monkeypatch, tmp_path, tiny_folder):
    asked = {}

    def snapshot_download(repo, **kwargs):
        asked.update(kwargs, repo=repo)
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    fetched = fetch(settings("HF", "org/tiny", tmp_path, secret="hf_x", revision="abc"))
    assert (fetched.folder, fetched.revision) == (tiny_folder, tiny_folder.name)
    assert (asked["repo"], asked["revision"], asked["token"]) == ("org/tiny", "abc", "hf_x")
    assert not any(pattern.endswith((".bin", ".py", ".onnx")) for pattern in asked["allow_patterns"])


def test_a_cached_snapshot_serves_when_the_hub_does_not_answer(monkeypatch, tmp_path, tiny_folder, caplog):
    def snapshot_download(*args, local_files_only=False, **kwargs):
        if not local_files_only:
            raise OSError("no route to host")
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert fetch(settings("HF", "org/tiny", tmp_path)).folder == tiny_folder
    assert "using the cached org/tiny" in caplog.text


@pytest.mark.parametrize("revision", ["../../etc", "/etc", "a/../../b", "..", ".", "a\nb", "", "-x/..", "a//../b"])
@pytest.mark.parametrize("source", ["HF", "BASETEN_TRAINING"])
def test_a_revision_that_leads_elsewhere(tmp_path, source, revision):
    with pytest.raises(SetupError, match="is no branch, tag, commit"):
        fetch(settings(source, "org/tiny", tmp_path, revision=revision))


@pytest.mark.parametrize("repo", ["../../etc", "a/b/c", "org/../x", "/etc", "a" * 200])
def test_a_repository_that_is_none(tmp_path, repo):
    """The block refuses it, and so do variables and flags."""
    for block in (repo, "org/tiny"):
        with pytest.raises(SetupError, match="is not a Hugging Face repository id"):
            fetch(settings("HF", block, tmp_path).model_copy(update={"repo": repo}))


# -- folders ---------------------------------------------------------------------------------------------------------


def test_a_local_folder(tmp_path, tiny_folder):
    assert fetch(settings("LOCAL", str(tiny_folder), tmp_path)).folder == tiny_folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no config.json"),
        (["config.json"], r"has no \*\.safetensors and no pytorch_model\.bin; no other format is read"),
        (["config.json", "tf_model.h5"], r"has no \*\.safetensors and no pytorch_model\.bin; no other format is read"),
    ],
)
def test_a_folder_that_is_no_model(tmp_path, files, message):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    with pytest.raises(SetupError, match=message):
        fetch(settings("LOCAL", str(folder), tmp_path))
    with pytest.raises(SetupError, match="is not a folder"):
        fetch(settings("LOCAL", str(tmp_path / "absent"), tmp_path))


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "modules"])
def test_a_folder_of_pickles_is_the_same_model(tmp_path, head):
    folder = tmp_path / "saved"
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}}
    with_dense(folder) if head == "modules" else save(folder, random_model("bert", 0, head, **labels), pooling=None)
    before = read(folder, "m")
    tensors = {name: before.tensors[name] for name in before.tensors}
    without_safetensors(folder)
    after = load(settings("LOCAL", str(folder), tmp_path))
    assert (after.task, after.spec, after.labels) == (before.task, before.spec, before.labels)
    assert all(np.array_equal(after.tensors[name], tensors[name]) for name in tensors)


def test_baseten_training(tmp_path, tiny_folder):
    mounted = tmp_path / "mounted"
    for step, name in enumerate(["job1/checkpoint-50", "job1/checkpoint-100", "job2/checkpoint-10"]):
        folder = mounted / name
        (folder / "1_Pooling").mkdir(parents=True)
        for file in ("modules.json", "1_Pooling/config.json", "model.safetensors", "config.json"):
            (folder / file).write_bytes((tiny_folder / file).read_bytes())
        os.utime(folder / "config.json", (step, step))

    def fetched(**flags) -> str | None:
        return fetch(settings("BASETEN_TRAINING", "project", tmp_path, training_dir=mounted, **flags)).revision

    assert fetched(revision="job1/checkpoint-50") == "job1/checkpoint-50"
    assert fetched(revision="job1") == "job1/checkpoint-100"
    assert fetched(revision="latest") == fetched() == "job2/checkpoint-10"
    with pytest.raises(SetupError, match=r"no checkpoint under .*job9; mount"):
        fetched(revision="job9")


# -- buckets ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(tiny_folder) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.put(str(tiny_folder), "/bucket/path", recursive=True)
    for name in ("pytorch_model.bin", "optimizer.bin", "modeling.py"):
        memory.pipe(f"/bucket/path/{name}", b"pickle")
    yield "memory://bucket/path"
    memory.rm("/bucket", recursive=True)


SECRETS = {
    "S3": {"aws_access_key_id": "k", "aws_secret_access_key": "s", "aws_region": "r"},
    "GCS": {"private_key": "p", "client_email": "e"},
    "AZURE": {"account_name": "n", "account_key": "a"},
}
FILESYSTEMS = {
    "S3": ("s3", {"key": "k", "secret": "s", "token": None, "client_kwargs": {"region_name": "r"}}),
    "GCS": ("gs", {"token": {**buckets._GOOGLE, "private_key": "p", "client_email": "e"}}),
    "AZURE": ("az", {"account_name": "n", "account_key": "a"}),
}


@pytest.mark.parametrize("source", ["S3", "GCS", "AZURE"])
def test_buckets(monkeypatch, tmp_path, bucket, source):
    asked = []

    def filesystem(protocol, **options):
        asked.append((protocol, options))
        return fsspec.get_filesystem_class("memory")()

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    wanted = settings(source, bucket, tmp_path, secret=json.dumps(SECRETS[source]))
    folder = fetch(wanted).folder
    assert load(wanted).spec.hidden_size == 48
    assert not [*folder.rglob("*.bin"), *folder.rglob("*.py")]
    assert asked == [FILESYSTEMS[source]], "once: the second fetch comes from the cache"
    with pytest.raises(SetupError, match=r"holds no \*\.json"):
        fetch(settings(source, "memory://bucket/empty", tmp_path))
    with pytest.raises(SetupError, match="must be a JSON object"):
        fetch(settings(source, "memory://bucket/other", tmp_path, secret="not json"))


def test_a_bucket_of_pickles(monkeypatch, tmp_path):
    """In each folder that has no safetensors, and of pickles those of weights alone."""
    folder = with_dense(tmp_path / "saved")
    without_safetensors(folder)
    (folder / "2_Dense" / "pytorch_model.bin").rename(folder / "2_Dense" / "optimizer.bin")
    safetensors.torch.save_file({"linear.weight": torch.rand(8, 48)}, folder / "2_Dense" / "model.safetensors")
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/pickles", recursive=True)
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol, **options: memory)
    wanted = settings("S3", "memory://bucket/pickles", tmp_path)
    assert load(wanted).spec.row_size == 8
    found = {path.relative_to(fetch(wanted).folder).as_posix() for path in fetch(wanted).folder.rglob("*.*")}
    assert {name for name in found if name.endswith((".bin", ".safetensors"))} == {
        "pytorch_model.bin",
        "2_Dense/model.safetensors",
    }
    memory.rm("/bucket/pickles", recursive=True)


def test_a_store_that_fails_is_one_line(monkeypatch, tmp_path, bucket):
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol, **options: memory)
    monkeypatch.setattr(memory, "get_file", lambda *args: (_ for _ in ()).throw(PermissionError("denied\nat once")))
    with pytest.raises(SetupError, match=r"cannot be read \(PermissionError: denied\); check the path and the secret"):
        fetch(settings("S3", bucket, tmp_path))
    assert list((tmp_path / "cache" / "checkpoints").iterdir()) == []


def test_a_store_cannot_name_a_file_elsewhere(monkeypatch, tmp_path):
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol, **options: memory)
    monkeypatch.setattr(memory, "glob", lambda pattern, detail: {"/bucket/path/../../up.json": {"size": 1}})
    with pytest.raises(SetupError, match=r"names '\.\./\.\./up\.json', which is not inside"):
        fetch(settings("S3", "memory://bucket/path", tmp_path))


def test_a_store_is_bounded(monkeypatch, tmp_path, bucket):
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol, **options: memory)
    with pytest.raises(SetupError, match="is larger than 1000 bytes; see BEI_MAX_DOWNLOAD_BYTES"):
        fetch(settings("S3", bucket, tmp_path, max_download_bytes=1000))


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    def filesystem(protocol, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    with pytest.raises(SetupError, match=r"source S3 needs an extra: \S+ -m pip install .*\[s3\]'"):
        fetch(settings("S3", "s3://bucket/path", tmp_path))


# -- archives --------------------------------------------------------------------------------------------------------


def packed(folder: Path, top: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for file in sorted(folder.rglob("*")):
            tar.add(file, top + str(file.relative_to(folder)), recursive=False)
    return buffer.getvalue()


def with_member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 3) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        member.size = size if kind == tarfile.REGTYPE else 0
        tar.addfile(member, io.BytesIO(b"\0" * size) if kind == tarfile.REGTYPE else None)
    return buffer.getvalue()


def with_extended_header(size: int) -> bytes:
    """A few bytes that tell tarfile to read `size` of them into memory."""
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, size
    return gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * size)


def nested_headers(kind: bytes) -> bytes:
    """Nested headers, each of which tarfile reads in the call of the one before."""
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = kind, 512
    content = b"11 path=abc\n" if kind == tarfile.XHDTYPE else b"abc"
    return gzip.compress((header.tobuf(tarfile.GNU_FORMAT) + content.ljust(512, b"\0")) * 5000)


def many_members(count: int) -> bytes:
    return gzip.compress(b"".join(tarfile.TarInfo(f"{i}.txt").tobuf() for i in range(count)) + b"\0" * 1024, 1)


DRIPS = b"dripping"


def drip(handler: BaseHTTPRequestHandler) -> None:
    """An answer that arrives one byte at a time, slowly."""
    handler.send_response(200)
    handler.end_headers()
    with suppress(OSError):
        for _ in range(100):
            handler.wfile.write(b"\x1f")
            time.sleep(0.1)  # the server's pace


@pytest.fixture
def web() -> Iterator[tuple[str, dict[str, bytes | str]]]:
    """Base URL and pages: bytes are sent, a string is a redirect."""
    pages: dict[str, bytes | str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path)
            if page is DRIPS:
                return drip(self)
            self.send_response(404 if page is None else 302 if isinstance(page, str) else 200)
            if isinstance(page, str):
                self.send_header("location", page)
            body = page if isinstance(page, bytes) else b""
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", pages
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("top", ["", "model/"])
def test_an_archive(web, tmp_path, tiny_folder, top):
    url, pages = web
    pages["/model.tar.gz"], pages["/here"] = packed(tiny_folder, top), "/model.tar.gz"
    wanted = settings("REMOTE_URL", f"{url}/here", tmp_path, allow_private_urls=True)
    assert load(wanted).spec.hidden_size == 48
    pages.clear()
    assert load(wanted).spec.hidden_size == 48, "the second time it comes from the cache"
    assert [p.name for p in (tmp_path / "cache" / "checkpoints").iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (with_member("../../evil.json"), "a path outside its own folder"),
        (with_member("/etc/evil.json"), "a path outside its own folder"),
        (with_member("link.json", tarfile.SYMTYPE), "a link or device"),
        (with_member("link.json", tarfile.LNKTYPE), "a link or device"),
        (with_member("device.json", tarfile.CHRTYPE), "a link or device"),
        (with_member("bomb.json", size=200_000), "unpacks to more than 100000 bytes"),
        (b"\0" * 200_000, "is larger than 100000 bytes"),
        (with_member("holes.json", tarfile.GNUTYPE_SPARSE), "a file with holes"),
        (with_member("a/" * 3000 + "x.json"), "cannot be unpacked: File name too long"),
        (nested_headers(tarfile.XHDTYPE), "has headers of headers"),
        (nested_headers(tarfile.XGLTYPE), "has headers of headers"),
        (nested_headers(tarfile.GNUTYPE_LONGNAME), "has headers of headers"),
        (with_extended_header(5_000_000), "has a header of 5000192 bytes"),
        (many_members(10_001), "more than 10000 files"),
        (gzip.compress(b"x" * 3000)[:40] + b"damaged" * 9, "is not a whole tar.gz"),
        (with_member("nul\0.json/" + "x" * 300 + ".json"), "is not a whole tar.gz"),
        (b"PK\3\4 a zip", "is not a whole tar.gz"),
        (b"not a tar", "is not a whole tar.gz"),
        (with_member("model.json", size=50_000)[:100], "is not a whole tar.gz"),
        ("ftp://elsewhere/x", "a REMOTE_URL is http or https"),
        ("/model.tar.gz", "more than 5 redirects"),
        (None, "cannot be downloaded: .*404"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),  # a gzip has the time in it
)
def test_a_bad_archive_leaves_nothing(web, tmp_path, page, message):
    url, pages = web
    if page is not None:
        pages["/model.tar.gz"] = page
    wanted = settings(
        "REMOTE_URL", f"{url}/model.tar.gz", tmp_path, allow_private_urls=True, max_download_bytes=100_000
    )
    with pytest.raises(SetupError, match=message) as caught:
        fetch(wanted)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert list((tmp_path / "cache" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("inner", ["", ".top/", "archive.tar.gz/", "content/"])
@pytest.mark.parametrize("top", [".top/", "archive.tar.gz/", "m/", "./.top/"])
def test_a_folder_in_an_archive_may_have_any_name(web, tmp_path, tiny_folder, top, inner):
    url, pages = web
    pages["/model.tar.gz"] = packed(tiny_folder, f"{top}other.json/{inner}")
    (tmp_path / "into").mkdir()
    archive.download(f"{url}/model.tar.gz", tmp_path / "into", max_bytes=10**7, allow_private=True)
    (found,) = (tmp_path / "into").rglob("modules.json")
    assert (found.parent / "config.json").read_bytes() == (tiny_folder / "config.json").read_bytes()
    assert len(list((tmp_path / "into").iterdir())) == 1, "nothing of the download itself is left"


def test_a_full_disk_is_named(web, tmp_path, tiny_folder, monkeypatch):
    url, pages = web
    pages["/model.tar.gz"] = packed(tiny_folder)
    wanted = settings("REMOTE_URL", f"{url}/model.tar.gz", tmp_path, allow_private_urls=True)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for name in ("_save", "_unpack"):
        with monkeypatch.context() as patch, pytest.raises(SetupError, match=r": No space left on device$"):
            patch.setattr(archive, name, lambda *_: (_ for _ in ()).throw(full))
            fetch(wanted)


def test_a_download_that_drips_is_left(web, tmp_path, tiny_folder, monkeypatch):
    """A server that sends bytes just in time for read timeouts; a store that never ends."""
    monkeypatch.setattr(pace, "WINDOW_SECONDS", 0.5)
    monkeypatch.setattr(pace, "_LOOK_SECONDS", 0.05)
    url, pages = web
    pages["/model.tar.gz"] = DRIPS
    with pytest.raises(SetupError, match=r"model.tar.gz is not downloaded: \d+ bytes came in 0.5 s, and 1048576 are"):
        fetch(settings("REMOTE_URL", f"{url}/model.tar.gz", tmp_path, allow_private_urls=True))
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol, **options: memory)
    monkeypatch.setattr(memory, "glob", lambda *_, **__: time.sleep(20))  # the store stalls
    with pytest.raises(SetupError, match=r"memory://bucket is not downloaded: 0 bytes came in 0.5 s"):
        fetch(settings("S3", "memory://bucket", tmp_path))
    monkeypatch.setattr(pace, "WINDOW_BYTES", 0)
    monkeypatch.setattr(pace, "MOST_SECONDS", 0.5)
    with pytest.raises(SetupError, match=r"model.tar.gz was not downloaded in \S+ hours"):
        fetch(settings("REMOTE_URL", f"{url}/model.tar.gz", tmp_path, allow_private_urls=True))
    assert list((tmp_path / "cache" / "checkpoints").iterdir()) == []


def test_a_folder_in_an_archive_may_have_the_name_of_its_parent(web, tmp_path, tiny_folder):
    url, pages = web
    pages["/model.tar.gz"] = packed(tiny_folder, "1_Pooling/")
    assert load(settings("REMOTE_URL", f"{url}/model.tar.gz", tmp_path, allow_private_urls=True)).spec.hidden_size == 48


def test_an_archive_keeps_every_file_that_is_read(web, tmp_path, tiny_folder):
    """Besides JSON and safetensors: ColBERT's settings, files that may call a language model a reranker, and those of
    older tokenizers."""
    url, pages = web
    folder, names = (
        tmp_path / "more",
        ("artifact.metadata", "README.md", "chat_template.jinja", "vocab.txt", "spm.model"),
    )
    shutil.copytree(tiny_folder, folder)
    for name in (*names, *PICKLES, "qwen.tiktoken", "code.py", "optimizer.bin", "scheduler.pt"):
        (folder / name.replace("*", "")).write_text("{}")
    pages["/model.tar.gz"] = packed(folder)
    fetched = fetch(settings("REMOTE_URL", f"{url}/model.tar.gz", tmp_path, allow_private_urls=True)).folder
    assert {name for name in names if (fetched / name).exists()} == set(names) <= set(WANTED)
    kept = {path.name for path in fetched.iterdir() if path.suffix in (".py", ".bin", ".pt")}
    assert kept == {"pytorch_model.bin", "adapter_model.bin"}
    assert (fetched / "qwen.tiktoken").exists()


INSIDE = [
    *("127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254", "192.168.1.1", "0.0.0.0", "100.100.100.200"),
    *("2130706433", "0x7f000001", "127.1", "168.63.129.16", "224.0.0.1", "[fd00:ec2::254]", "[fe80::1]", "[fec0::1]"),
    *("[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::a00:1]", "[2002:a9fe:a9fe::1]", "[ff02::1]"),
]


@pytest.mark.parametrize("host", INSIDE)
def test_addresses_inside_the_network_are_refused(tmp_path, host):
    with pytest.raises(SetupError, match="an address inside the network; set BEI_ALLOW_PRIVATE_URLS"):
        fetch(settings("REMOTE_URL", f"http://{host}:1/model.tar.gz", tmp_path))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("2002:808:808::1", True),
        ("::1", False),
        ("::127.0.0.1", False),
        ("::8.8.8.8", False),
        ("::ffff:0:127.0.0.1", False),
        ("::ffff:8.8.8.8", False),
        ("64:ff9b:1::808:808", False),
        ("2001:0:808:808::1", False),
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("5f00::1", False),
        ("4000::1", False),
        ("192.0.0.192", False),
        ("192.88.99.1", False),
        ("255.255.255.255", False),
    ],
)
def test_public_addresses(address, public):
    assert archive.is_public(ip_address(address)) == public


ADDRESSES = st.integers(0, 2**128 - 1).map(IPv6Address) | st.sampled_from(archive._INSIDE_IPV4).flatmap(
    lambda network: st.integers(0, network.num_addresses - 1).map(lambda i: network[i])
)


@given(ADDRESSES | st.integers(0, 2**32 - 1).map(ip_address))
def test_what_python_knows_as_special_is_no_public_address(address):
    if archive.is_public(address) and address not in archive._NAT64:
        assert address.is_global and not address.is_multicast and not address.is_reserved


def test_a_name_is_looked_up_once(monkeypatch, tmp_path):
    """A second answer, such as a rebinding server's internal address, is never asked for."""
    asked, connected = [], []

    def look_up(host, port, *args, **more):
        asked.append(host)
        return [(2, 1, 6, "", ("203.0.114.7" if len(asked) == 1 else "127.0.0.1", port))]

    def send(client, request, **more):
        connected.append((request.url.host, request.headers["host"], request.extensions["sni_hostname"]))
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(archive.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(httpx.Client, "send", send)
    monkeypatch.setattr(retries, "TRIES", 1)  # of another the address is checked again: test_downloads.py
    with pytest.raises(SetupError, match="cannot be downloaded: refused"):
        fetch(settings("REMOTE_URL", "https://rebinding.test/model.tar.gz", tmp_path))
    assert asked == ["rebinding.test"]
    assert connected == [("203.0.114.7", "rebinding.test", "rebinding.test")]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "gopher://host/x", "data:,x"])
def test_other_schemes_are_refused(tmp_path, url):
    with pytest.raises(SetupError, match="a REMOTE_URL is http or https"):
        fetch(settings("REMOTE_URL", url, tmp_path))


def test_a_redirect_into_the_network_is_refused(web, tmp_path, monkeypatch):
    """The first hop passes as if it were public; the second is checked again."""
    url, pages = web
    pages["/model.tar.gz"] = "http://169.254.169.254/secret"
    pinned = archive._pinned
    monkeypatch.setattr(
        archive,
        "_pinned",
        lambda client, target: client.build_request("GET", target) if target.port else pinned(client, target),
    )
    with pytest.raises(SetupError, match=r"169\.254\.169\.254, an address inside the network"):
        fetch(settings("REMOTE_URL", f"{url}/model.tar.gz", tmp_path))


def test_two_processes_at_once(web, tmp_path, tiny_folder):
    url, pages = web
    pages["/model.tar.gz"] = packed(tiny_folder)
    wanted = settings("REMOTE_URL", f"{url}/model.tar.gz", tmp_path, allow_private_urls=True)
    start, folders = threading.Barrier(4), []

    def one() -> None:
        start.wait(10)
        folders.append(fetch(wanted).folder)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(folders) == 4
    assert len(set(folders)) == 1
