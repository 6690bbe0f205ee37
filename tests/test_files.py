"""Only files that nobody else can have written are read from the cache; files are there whole or not at all."""

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from torch._inductor import codecache

from bei import cli, files, processes
from bei.checkpoint import sources
from bei.checkpoint.tensors import _content_hash
from bei.engines import plan
from bei.engines.base import EngineOptions
from bei.engines.native import library
from bei.engines.native.engine import NativeEngine
from bei.engines.torch.engine import _keep_kernels
from bei.errors import SetupError
from bei.settings import Settings

OTHER = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def temporary(monkeypatch, tmp_path) -> Path:
    """The folder in the place of /tmp."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    files._warn.cache_clear()
    return tmp_path / "tmp" / f"bei-{os.geteuid()}"


def mode(place: Path) -> int:
    return stat.S_IMODE(place.stat().st_mode)


def opened(root: Path) -> Path:
    with files.cache(root, "native") as folder:
        return folder


def test_what_is_made_is_for_us_alone_whatever_the_umask(tmp_path, open_umask):
    folder = opened(tmp_path / "a" / "cache")
    plan.write(folder / "a.plan", "key", [plan.ready("x", np.arange(3))])
    assert {mode(folder), mode(folder.parent), mode(folder.parent.parent)} == {0o700}
    assert mode(folder / "a.plan") == 0o600


def test_a_library_too(tiny_checkpoint, native_cache, open_umask):
    NativeEngine(tiny_checkpoint, EngineOptions(cache_dir=native_cache))
    plan.settle()
    assert {mode(file) for file in (native_cache / "native").iterdir()} == {0o600}


@pytest.mark.parametrize("others", [0o020, 0o002, 0o1002])
@pytest.mark.parametrize("name", ["cache", "cache/native"])
def test_a_folder_that_others_may_write_to_is_not_used(tmp_path, temporary, caplog, name, others):
    opened(tmp_path / "cache")
    (tmp_path / name).chmod(0o700 | others)
    with caplog.at_level(logging.WARNING, "bei"):
        folder = opened(tmp_path / "cache")
    assert folder == temporary / "native"
    assert caplog.messages == [f"{tmp_path / name} is not used: it may be written to by others: chmod go-w"]
    assert mode(folder) == mode(temporary) == 0o700


@AS_ROOT
def test_nor_is_another_user_s(tmp_path, temporary, caplog):
    os.chown(opened(tmp_path / "cache"), OTHER, OTHER)
    assert opened(tmp_path / "cache") == temporary / "native"
    assert f"belongs to user {OTHER}" in caplog.text


def test_what_is_checked_is_what_is_read(tmp_path):
    """A user who may write to a folder above replaces ours between the check and the reading."""
    folder = opened(tmp_path / "cache")
    (folder / "a").write_bytes(b"ours")
    (folder / "a").chmod(0o600)
    with files.opened(folder / "a") as found:
        (tmp_path / "cache").rename(tmp_path / "away")
        opened(tmp_path / "cache").joinpath("a").write_bytes(b"theirs")
        assert found.read() == b"ours"


@AS_ROOT
def test_a_file_that_was_put_there_since_the_check_is_not_read(tmp_path, monkeypatch):
    file = opened(tmp_path / "cache") / "a"
    file.write_bytes(b"theirs")
    os.chown(file, OTHER, OTHER)
    monkeypatch.setattr(files, "is_ours", lambda file: True)
    with files.opened(file) as found:
        assert found is None


def test_two_that_are_not_ours_stop_the_start(tmp_path, temporary):
    opened(tmp_path / "cache").chmod(0o777)
    temporary.mkdir(parents=True)
    temporary.chmod(0o777)
    with pytest.raises(SetupError, match="set BEI_CACHE_DIR to a folder of your own"):
        opened(tmp_path / "cache")


def test_nor_is_a_link_in_the_place_of_temporary_files(tmp_path, temporary):
    opened(tmp_path / "cache").chmod(0o777)
    (tmp_path / "elsewhere").mkdir()
    temporary.parent.mkdir()
    temporary.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SetupError, match="is a link"):
        opened(tmp_path / "cache")


def by_group(file: Path) -> None:
    file.chmod(0o620)


def by_its_owner(file: Path) -> None:
    os.chown(file, OTHER, OTHER)


SPOILT = pytest.mark.parametrize("spoil", [by_group, pytest.param(by_its_owner, marks=AS_ROOT)])


@SPOILT
def test_a_plan_that_others_may_have_written_is_made_again(tmp_path, spoil):
    file = opened(tmp_path / "cache") / "a.plan"
    plan.write(file, "key", [plan.ready("x", np.zeros(3))])
    spoil(file)
    made = plan.cached(file, "key", lambda: [plan.ready("x", np.ones(3))])
    plan.settle()
    np.testing.assert_array_equal(made["x"], np.ones(3))
    assert (mode(file), file.stat().st_uid) == (0o600, os.geteuid())


@SPOILT
def test_nor_is_a_library_loaded(tmp_path, spoil):
    """Its hash, which anybody can write, shows only that it is whole."""
    file = opened(tmp_path / "cache") / "bei.so"
    with files.replacing(file) as unfinished:
        unfinished.write_bytes(b"code" + hashlib.sha256(b"code").digest())
    with pytest.raises(SetupError, match=f"{file}: file too short"):  # the loader has looked at it
        library._load(file)
    spoil(file)
    assert library._load(file) is None


@SPOILT
def test_nor_a_hash_believed(tmp_path, spoil):
    weights, notes = tmp_path / "w", tmp_path / "notes"
    weights.write_bytes(b"x")
    wanted = _content_hash(weights, notes)
    (note,) = notes.iterdir()
    note.write_text("wrong")
    assert _content_hash(weights, notes) == "wrong"
    spoil(note)
    assert _content_hash(weights, notes) == wanted


def test_a_download_is_for_us_alone_and_only_ours_is_used(tmp_path, open_umask):
    url = {"source": "REMOTE_URL", "repo": "https://example.com/a.tar.gz"}
    config = {"trt_llm": {"build": {"base_model": "encoder_bert", "checkpoint_repository": url}}}
    settings = Settings.load(config, environ={}, cache_dir=tmp_path / "cache")
    place = sources._once(settings, lambda folder: (folder / "config.json").write_text("{}"))
    assert {mode(place), mode(place.parent), mode(place.parent.parent)} == {0o700}
    assert sources._once(settings, pytest.fail) == place
    place.chmod(0o770)
    with pytest.raises(SetupError, match="may have been written by others; remove it"):
        sources._once(settings, pytest.fail)


def test_torch_keeps_its_code_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    _keep_kernels(tmp_path / "cache")
    folder = Path(codecache.cache_dir())
    assert folder == tmp_path / "cache" / "torch"
    assert mode(folder) == 0o700


@pytest.mark.parametrize(
    "command",
    [
        ("info", "--source", "LOCAL", "--repo", "~nobody-here/m"),
        ("convert", "~nobody-here/m", "out"),
    ],
)
def test_a_home_that_is_unknown_is_a_line(command):
    result = CliRunner().invoke(cli.main, command)
    message = "bei: '~nobody-here/m': the home folder is unknown; write the whole path\n"
    assert (result.exit_code, result.stderr) == (2, message)


def test_homes_are_looked_up_in_one_place():
    sources = processes.HOME.joinpath("bei").rglob("*.py")
    assert {file.name for file in sources if ".expanduser(" in file.read_text()} == {"files.py"}


def test_what_fails_leaves_nothing_and_what_was_there(tmp_path):
    place = tmp_path / "a"
    place.write_text("before")

    def fail() -> None:
        with files.replacing(place) as unfinished:
            unfinished.write_text("half")
            raise OSError

    with pytest.raises(OSError):
        fail()
    assert place.read_text() == "before"
    assert list(tmp_path.iterdir()) == [place]
