"""A wheel with the engine compiled: it serves where there is no compiler."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from bei.engines.native import library, prebuilt
from bei.engines.native.levels import LEVELS_OF, Level, level
from deploy import wheels
from tests.support.configs import tiny_config
from tests.support.servers import ROOT, free_port, wait_until_ready
from tests.support.tiny_models import write_json


@pytest.fixture(scope="module")
def wheel(native_cache, tmp_path_factory) -> Path:
    """With the library of this processor's level alone; `make wheels` compiles all of them."""
    library.load(level(), native_cache)
    libraries = tmp_path_factory.mktemp("libraries")
    shutil.copy(native_cache / library.name_of(level()), libraries)
    given = {"BEI_WHEEL_LIBRARIES": str(libraries), "BEI_WHEEL_PLATFORM": "manylinux_2_28_x86_64"}
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, **given})
    (made,) = folder.glob("*.whl")
    return made


def test_its_name_says_where_it_runs(wheel):
    assert re.fullmatch(r"bei-[\d.]+-py3-none-manylinux_2_28_x86_64\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    assert f"bei/engines/native/built/{library.name_of(level())}" in names
    assert "bei/engines/native/cpp/abi.h" in names
    (about,) = (name for name in names if name.endswith("WHEEL"))
    assert b"Root-Is-Purelib: false" in zipfile.ZipFile(wheel).read(about)


def test_it_serves_without_a_compiler(wheel, tiny_folder, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    write_json(tmp_path / "config.yaml", tiny_config(tiny_folder))
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-P", "-m", "bei.cli", "serve", "--config", str(tmp_path / "config.yaml")]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("CXX", "TESTS_"))},
        **{"PATH": "/nonexistent", "HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path / "installed")},
    }
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=output, stderr=output, env=environment)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        assert httpx.get(f"http://127.0.0.1:{port}/info").json()["engine"] == "native"
    finally:
        process.terminate()
        process.wait(30)
    assert "compiled" not in log.read_text()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [(lambda content: content[:-1], "is not whole"), (lambda content: b"", "is not whole"), (None, None)],
)
def test_an_installed_library_that_cannot_be_used_is_told_of(native_cache, tmp_path, monkeypatch, caplog, spoil, told):
    library.load(level(), native_cache)
    monkeypatch.setattr(library, "BUILT", tmp_path)
    name = library.name_of(level())
    if spoil is not None:
        (tmp_path / name).write_bytes(spoil((native_cache / name).read_bytes()))
    assert library.load(level(), native_cache).bei_encoder_create
    assert [record.message for record in caplog.records] == ([f"{tmp_path / name} is not used: {told}"] if told else [])


def test_a_library_of_other_sources_has_another_name(monkeypatch):
    name = library.name_of(level())
    monkeypatch.setattr(library, "OPTIONS", ("-O1",))
    assert library.name_of(level()) != name


def test_every_level_of_a_machine_is_compiled(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(library, "compile_into", lambda file, level, compiler: made.append(level) or file.touch(0o600))
    for machine, levels in LEVELS_OF.items():
        files = prebuilt.compile_all(tmp_path / machine, levels, ("c++",))
        assert [file.name for file in files] == [library.name_of(level) for level in levels]
        assert {file.stat().st_mode & 0o777 for file in files} == {0o755}
    assert made == [level for levels in LEVELS_OF.values() for level in levels]
    refused = CliRunner().invoke(prebuilt.main, ["--machine", "sparc", str(tmp_path)])
    assert (refused.exit_code, "x86_64" in refused.output) == (2, True)


@pytest.mark.parametrize(
    ("flag", "zigs"),
    [
        ("-march=armv8.2-a+dotprod+i8mm+bf16", "-mcpu=generic+v8_2a+dotprod+i8mm+bf16"),
        ("-march=armv8-a", "-mcpu=generic"),
        ("-mavx2", "-mavx2"),
    ],
)
def test_zig_has_words_of_its_own_for_arm(flag, zigs):
    assert wheels.in_zigs_words(Level("neon", (), (flag,))) == Level("neon", (), (zigs,))


def test_a_wheel_of_25_mb_is_refused(tmp_path):
    wheel = tmp_path / "bei.whl"
    with wheel.open("wb") as file:
        file.truncate(24_999_999)
        wheels.check_size(wheel)
        file.truncate(25_000_000)
        with pytest.raises(SystemExit, match=r"bei\.whl has 25\.0 MB"):
            wheels.check_size(wheel)
