"""The compiler of the tests compiles everything that differs, and nothing twice."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.compiler import __file__ as remembering

Compile = Callable[..., tuple[int, bool]]


@pytest.fixture
def compile_it(tmp_path) -> Compile:
    """compile_it(*options, header): the status, and whether the real compiler was called for an object, or, as None, to
    preprocess alone."""
    asked, real = tmp_path / "asked", tmp_path / "c++"
    noted = f'case "$*" in *-E*) echo E >> {asked} ;; *) echo O >> {asked} ;; esac'
    real.write_text(f'#!/bin/sh\n{noted}\nexec {os.environ["TESTS_CXX"]} "$@"\n')
    real.chmod(0o755)
    (tmp_path / "objects").mkdir()
    environment = {**os.environ, "TESTS_CXX": str(real), "TESTS_OBJECTS": str(tmp_path / "objects")}

    def run(*options: str, header: str = "int one() { return 1; }") -> tuple[int, bool]:
        (tmp_path / "header.h").write_text(header)
        asked.write_text("")
        target = tmp_path / "out.o"
        target.unlink(missing_ok=True)
        command = [remembering, *options, "-x", "c++", "-c", "-", "-o", str(target)]
        text = f'#include "{tmp_path / "header.h"}"\n'
        done = subprocess.run(command, input=text, env=environment, capture_output=True, text=True)
        assert target.exists() == (done.returncode == 0)
        calls = asked.read_text()
        return done.returncode, "O" in calls if "O" in calls or not calls else None

    return run


def test_the_same_is_compiled_once(compile_it):
    assert [compile_it("-O0"), compile_it("-O0")] == [(0, True), (0, False)]


def test_a_text_of_other_bytes_and_the_same_meaning_is_preprocessed_alone(compile_it):
    compile_it("-O0")
    assert compile_it("-O0", header="int one() { return 1; }  // again") == (0, None)


def test_what_differs_is_compiled(compile_it):
    compile_it("-O0")
    assert compile_it("-O1") == (0, True)
    assert compile_it("-O0", header="int one() { return 2; }") == (0, True)
    assert compile_it("-O0", "-DTWO", header="int one() { return 1; }") == (0, True)


def test_what_fails_fails_again(compile_it):
    for _ in range(2):
        status, asked = compile_it(header="int one() { return nothing; }")
        assert status != 0 and asked


def test_a_linked_program_is_of_its_objects(tmp_path):
    """Objects are identified by their bytes, whatever their names are."""
    environment = {**os.environ, "TESTS_OBJECTS": str(tmp_path / "objects")}
    (tmp_path / "objects").mkdir(exist_ok=True)
    found = []
    for answer in (3, 4):
        source, target = tmp_path / "main.cpp", tmp_path / "main.o"
        source.write_text(f"int main() {{ return {answer}; }}\n")
        for words in (["-c", source, "-o", target], [target, "-o", tmp_path / "program"]):
            subprocess.run([remembering, *map(str, words)], env=environment, check=True)
        found.append(subprocess.run([Path(tmp_path / "program")]).returncode)
    assert found == [3, 4]
