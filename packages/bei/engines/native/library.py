"""The C++ library: the one that a wheel brings, or compiled by the system's compiler when first needed, then kept."""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bei import files, processes
from bei.engines.cpus import available_cpus
from bei.engines.native.abi import (
    PRECISIONS,
    Batch,
    Encoder,
    Field,
    Layout,
    Layouts,
    Linear,
    Machine,
    Matrix,
    Model,
    Sharing,
    mismatch,
)
from bei.engines.native.levels import Level
from bei.engines.plan import source_hash
from bei.errors import SetupError, one_line
from bei.progress import Wait

log = logging.getLogger("bei")

BUILT = Path(__file__).parent / "built"
"""The libraries of a wheel or an image, one for each level (prebuilt.py)."""

_SOURCES = Path(__file__).parent / "cpp"
COMPILE = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden")
_STATIC = () if sys.platform == "darwin" else ("-static-libstdc++", "-static-libgcc")  # macOS has no such libraries
_LINK = ("-shared", "-pthread", *_STATIC)
OPTIONS = (*COMPILE, *_LINK)
INCLUDE = ("-I", str(_SOURCES))
_FIRST_UNIT = ("abi", "encoder_bf16", "encoder_int8")  # the other sources take about as long; headers are much of it
_OPENED = Path("/proc/self/fd")  # Linux's names of opened files
_SECONDS = 8.0  # a source on one core of Zen 3, by g++ 12
_COMPILERS = ("c++", "g++", "clang++")


class CannotCompile(SetupError):
    """There is no compiler, or it cannot compile a level."""


def load_fastest(levels: Sequence[Level], folder: Path) -> tuple[Level, ctypes.CDLL]:
    """The first of these levels whose library is there or can be compiled, and the library. Raises SetupError."""
    refused = []
    for level in levels:
        try:
            library = load(level, folder)
        except CannotCompile as exc:
            refused.append(exc)
            continue
        if refused:
            log.warning("the level %s is not used, but %s: %s", levels[0].name, level.name, refused[0])
        return level, library
    raise refused[0]


def load(level: Level, folder: Path) -> ctypes.CDLL:
    """The library for a level: one that was installed with these sources, or one from `folder`, or compiled into it.
    Raises SetupError; CannotCompile if it has to be compiled and cannot be."""
    file = folder / name_of(level)
    library = _installed(BUILT / file.name) or _load(file)
    if library is None:
        compile_into(file, level, (compiler(),))
        library = _load(file)
    if library is None:
        raise SetupError(f"{file} is not what was compiled into it; set BEI_CACHE_DIR to a folder of your own")
    _check(library, file)
    _check_layouts(library, level, file)
    library.bei_encoder_create.argtypes = [ctypes.POINTER(Model), ctypes.POINTER(Machine), ctypes.c_void_p]
    library.bei_encoder_create.restype = Encoder
    library.bei_encoder_destroy.argtypes = [Encoder]
    library.bei_encoder_destroy.restype = None
    for run in (library.bei_encoder_pooled, library.bei_encoder_tokens):
        run.argtypes = [Encoder, ctypes.POINTER(Batch), ctypes.c_void_p]
    library.bei_pack.argtypes = [ctypes.POINTER(Layout), ctypes.POINTER(Matrix)]
    library.bei_sharing.argtypes = [ctypes.POINTER(Model), ctypes.POINTER(Machine), ctypes.c_int32]
    library.bei_sharing.restype = Sharing
    library.bei_linear.argtypes = [ctypes.POINTER(Linear), ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p]
    return library


def layouts(library: ctypes.CDLL, level: Level | None = None) -> Layouts:
    """How it reads matrices of each precision, or how the library of another level does."""
    if level is None:
        library.bei_layout.argtypes, library.bei_layout.restype = [ctypes.c_int32], Layout
        return {precision: library.bei_layout(number) for precision, number in PRECISIONS.items()}
    library.bei_layout_of.argtypes, library.bei_layout_of.restype = [ctypes.c_char_p, ctypes.c_int32], Layout
    name = level.name.encode()
    return {precision: library.bei_layout_of(name, number) for precision, number in PRECISIONS.items()}


def _check(library: ctypes.CDLL, file: Path) -> None:
    """Raises SetupError where a structure is not what abi.py says: it would be filled with numbers of other fields."""
    library.bei_abi.argtypes, library.bei_abi.restype = [], ctypes.POINTER(Field)
    if fault := mismatch(library.bei_abi()):
        raise SetupError(f"{file}: {fault}; install bei anew")


def _check_layouts(library: ctypes.CDLL, level: Level, file: Path) -> None:
    """Raises SetupError where other levels' libraries would pack for this one in another layout than it reads."""
    own, said = ([bytes(of) for of in found.values()] for found in (layouts(library), layouts(library, level)))
    if own != said:
        raise SetupError(f"{file}: cpp/kernel/layout.cpp has another layout for {level.name} than its kernels read")


def name_of(level: Level) -> str:
    """The file of a level's library. A library of other sources has another name."""
    return f"bei-{level.name}-{source_hash(_SOURCES, *OPTIONS)}.so"


def compile_into(file: Path, level: Level, compiler: Sequence[str]) -> None:
    """Compiles a level's library by a command, such as `("g++",)`. Raises CannotCompile."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
        texts = units()
        objects = [Path(temporary) / f"{i}.o" for i in range(len(texts))]

        def compile_one(text: str, target: Path) -> None:
            options = [*COMPILE, *INCLUDE, *level.compiler_flags]
            _run([*compiler, *options, "-x", "c++", "-c", "-", "-o", str(target)], temporary, text)

        turns = len(texts) / min(len(texts), available_cpus())
        with Wait(f"compiling for {level.name}", turns * _SECONDS), ThreadPoolExecutor(available_cpus()) as pool:
            list(pool.map(compile_one, texts, objects))
        linked = Path(temporary) / file.name
        _run([*compiler, *_LINK, *map(str, objects), "-o", str(linked)], temporary)
        content = linked.read_bytes()
        with files.replacing(file) as unfinished:  # the loader ignores what follows the library
            unfinished.write_bytes(content + hashlib.sha256(content).digest())
    log.info("compiled %s in %.1f s", file, time.monotonic() - started)


def units() -> tuple[str, str]:
    """Two texts that include all sources between them and take about as long to compile."""
    first, second = "", ""
    for source in sorted(_SOURCES.rglob("*.cpp")):
        line = f'#include "{source}"\n'
        first, second = (first + line, second) if source.stem in _FIRST_UNIT else (first, second + line)
    return first, second


def _installed(file: Path) -> ctypes.CDLL | None:
    """The library, if the file is there and ends with its own hash. It came with this code, so it is trusted as this
    code is."""
    if not file.exists():
        return None
    try:
        if _is_whole(file.read_bytes()):
            return ctypes.CDLL(str(file))
        reason = "is not whole"
    except OSError as exc:
        reason = one_line(exc, 300)
    log.warning("%s is not used: %s", file, reason)
    return None


def _load(file: Path) -> ctypes.CDLL | None:
    """The library, if the file is there, is ours, and ends with its own hash. Loads the very file that was checked;
    where opened files have no names, the one of that name, which only we can have replaced."""
    with files.opened(file) as opened:
        if opened is None or not _is_whole(opened.read()):
            return None
        kept = os.dup(opened.fileno())  # left open: the loader identifies a library by its name
        try:
            return ctypes.CDLL(f"{_OPENED}/{kept}" if _OPENED.exists() else str(file))
        except OSError as exc:
            os.close(kept)
            reason = one_line(exc, 300).partition(": ")[2]
    raise SetupError(f"{file}: {reason}; set BEI_CACHE_DIR to a folder that programs may be run from")


def _is_whole(content: bytes) -> bool:
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def compiler() -> str:
    """The absolute path of the compiler. Relative entries of PATH are ignored: they depend on the working folder."""
    named = os.environ.get("CXX")
    path = os.pathsep.join(filter(os.path.isabs, os.get_exec_path()))
    found = [shutil.which(name, path=path) for name in ([named] if named else _COMPILERS)]
    compiler = next(filter(None, found), None)
    if compiler is None:
        looked_for = f"CXX={named}" if named else ", ".join(_COMPILERS)
        raise CannotCompile(f"no C++ compiler ({looked_for}); install one (Debian: apt-get install g++)")
    return os.path.abspath(compiler)


def _run(command: list[str], temporary: str, text: str = "") -> None:
    """Run the compiler in a folder of its own: it searches its working folder, and /tmp may be read-only."""
    environment = {**os.environ, "TMPDIR": temporary}
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment, cwd=temporary)
    if done.returncode:
        ended = processes.how(done.returncode)
        error = next((line for line in done.stderr.splitlines() if "error" in line), one_line(done.stderr) or ended)
        raise CannotCompile(f"{command[0]} cannot compile the native engine: {error}")
