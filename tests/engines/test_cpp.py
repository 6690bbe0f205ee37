"""The C++ without a warning, of each compiler at hand; each header alone; each file includes what it uses.

A server's own compile has no such options: a compiler that warns of more must not keep it from starting.
"""

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from bei.engines.native import library
from bei.engines.native.levels import ARM, X86, Level
from tests.support.arm import COMPILERS as CROSS
from tests.support.servers import ROOT

CPP = Path(library.__file__).parent / "cpp"
HEADERS = sorted(CPP.rglob("*.h"))
SOURCES = sorted(CPP.rglob("*.cpp"))
COMPILERS = ["g++", "clang++"]
OWN, OTHERS = (ARM, X86) if platform.machine() in ("aarch64", "arm64") else (X86, ARM)
CASES = [(compiler, level) for compiler in COMPILERS for level in OWN]
CASES += [(str(compiler), level) for compiler in CROSS for level in OTHERS]
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only")
OF_VECTORS = {f"{level.name.partition('_')[0]}.h": (compiler, level) for compiler, level in CASES}
"""Headers of vectors, each with a level that compiles it."""

IN_HEADER = {
    "algorithm": "clamp copy_n count fill fill_n find max max_element min minmax_element remove upper_bound",
    "atomic": "atomic memory_order_acquire memory_order_release",
    "chrono": "chrono",
    "cmath": "abs exp log1p nearbyint rint sqrt tanh",
    "condition_variable": "condition_variable",
    "cstddef": "",
    "cstdint": "int8_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t",
    "cstdlib": "aligned_alloc free",
    "cstring": "memcpy strcmp",
    "exception": "current_exception exception_ptr rethrow_exception",
    "initializer_list": "initializer_list",
    "memory": "make_shared make_unique shared_ptr unique_ptr",
    "mutex": "lock_guard mutex unique_lock",
    "new": "bad_alloc",
    "thread": "this_thread thread",
    "type_traits": "conditional_t integral_constant is_same_v",
    "utility": "exchange integer_sequence make_integer_sequence move",
    "vector": "vector",
}
HEADER_OF = {name: header for header, names in IN_HEADER.items() for name in names.split()}


@cache
def clang_of_zig() -> list[str]:
    """The clang of the environment that builds wheels, with the headers of g++; empty without either."""
    found = sorted((ROOT / ".venv-wheels/lib").glob("python*/site-packages/ziglang/zig"))
    if not found or not shutil.which("g++"):
        return []
    ask = ["g++", "-E", "-x", "c++", "-v", "-"]
    told = subprocess.run(ask, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    listed = re.search(r"#include <\.\.\.> search starts here:\n(.*?)\nEnd of search list", told.stderr, re.DOTALL)
    folders = [line.strip() for line in listed[1].splitlines() if "/lib/gcc/" not in line] if listed else []
    own = [str(found[0].parent / "lib/include")]  # of the processor's instructions
    headers = [word for folder in (*folders[:1], *own, *folders[1:]) for word in ("-isystem", folder)]
    target = f"--target={platform.machine()}-linux-gnu"
    return [str(found[0]), "clang", target, "-nostdinc", *headers, "-Wno-unused-command-line-argument"]


def command_of(compiler: str) -> list[str]:
    found = [compiler] if shutil.which(compiler) else clang_of_zig() if compiler == "clang++" else []
    return found or pytest.skip(f"no {compiler}")


def complaints(compiler: str, level: Level, *files: Path, text: str = "", flags: Sequence[str] = ()) -> str:
    """The messages of the compiler for a unit that includes these files."""
    unit = text + "".join(f'#include "{file}"\n' for file in files)
    options = [*library.COMPILE, *library.INCLUDE, *STRICT, *level.compiler_flags, *flags]
    command = [*command_of(compiler), *options, "-x", "c++", "-"]
    done = subprocess.run(command, input=unit, capture_output=True, text=True)
    return done.stderr or (f"status {done.returncode}" if done.returncode else "")


@pytest.mark.parametrize(("compiler", "level"), CASES, ids=lambda case: getattr(case, "name", Path(str(case)).name))
def test_the_sources_give_no_warning(compiler, level):
    assert complaints(compiler, level, *SOURCES) == ""


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.name)
def test_each_header_compiles_alone(header):
    """At one level: only headers of vectors differ between levels. (Without -O3 the compiler's own are read faster.)"""
    if header.name not in OF_VECTORS and any(level.name.startswith(header.stem) for level in OTHERS):
        pytest.skip("no compiler for its processors: `make .venv-arm/ok` installs that for ARM64")
    compiler, level = OF_VECTORS.get(header.name, CASES[0])
    assert complaints(compiler, level, header, flags=["-O0"]) == ""


@pytest.mark.parametrize("header", [path for path in HEADERS if path.parent.name != "isa"], ids=lambda path: path.name)
def test_a_header_outside_isa_is_the_same_at_each_level(header):
    assert set(re.findall(r"^ *# *(?:el)?if.*", header.read_text(), re.MULTILINE)) <= {"#ifdef __cplusplus"}


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(
    "text", ["bool f(int a, unsigned b) { return a < b; }", "int f(int x) { return 0; }", "int a[0];"]
)
def test_a_warning_is_noticed(compiler, text):
    assert "error" in complaints(compiler, OWN[-1], text=text + "\n")


@pytest.mark.parametrize("path", [*HEADERS, *SOURCES], ids=lambda path: path.name)
def test_each_file_includes_what_it_uses(path):
    """Of the standard library: those of our own headers that are not included do not compile alone."""
    code = re.sub(r"//.*", "", path.read_text())
    used = set(re.findall(r"\bstd::(\w+)|\b(u?int\d+_t)\b", code))
    names = {name for pair in used for name in pair if name}
    assert names <= HEADER_OF.keys(), "say above which header has it"
    included = {header.replace("stdint.h", "cstdint") for header in re.findall(r"#include <(.+)>", code)}
    assert {HEADER_OF[name] for name in names} - included == set()
