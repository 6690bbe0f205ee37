#!/usr/bin/env -S python3 -IS
"""A caching C++ compiler: for the same text and options the same object, made once for all workers and runs.

Tests name it in CXX. `tests/conftest.py` sets the place of the objects (TESTS_OBJECTS) and the real compiler
(TESTS_CXX). The key is the text after the preprocessor, so a changed header gives another key. The preprocessor takes
half a second, so a list beside the objects has the key of each command, and the files that it read; while these are
the same, so is the key. A command that fails is not cached.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


def main(words: list[str]) -> int:
    compiler = os.environ["TESTS_CXX"]
    text = sys.stdin.buffer.read() if "-" in words else b""
    key = key_of(compiler, words, text)
    if key is None:
        return subprocess.run([compiler, *words], input=text).returncode
    target, kept = words[words.index("-o") + 1], Path(os.environ["TESTS_OBJECTS"]) / key
    with kept.with_name(f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits for the first one's object
        if not kept.exists():
            status = subprocess.run([compiler, *words], input=text).returncode
            if status:
                return status
            shutil.copy(target, kept.with_suffix(".new"))
            kept.with_suffix(".new").replace(kept)
    shutil.copy(kept, target)
    return 0


def key_of(compiler: str, words: list[str], text: bytes) -> str | None:
    """The key of the compiler, the options and the text; None where the preprocessor fails, or where there is no
    output."""
    if "-o" not in words:
        return None
    at, whole = words.index("-o"), hashlib.sha256(text)
    options = [*words[:at], *words[at + 2 :]]
    built = os.stat(compiler)
    whole.update(repr((compiler, built.st_size, built.st_mtime_ns)).encode())
    for option in options:
        content = Path(option).read_bytes() if option.endswith(".o") else option.encode()
        whole.update(hashlib.sha256(content).digest())
    if all(option.endswith(".o") for option in options if not option.startswith("-")):
        return whole.hexdigest()[:32]
    known = Path(os.environ["TESTS_OBJECTS"]) / f"{whole.hexdigest()[:32]}.json"
    if known.exists():
        found = json.loads(known.read_text())
        if found["files"] == hashes(found["files"]):
            return found["key"]
    return preprocessed(compiler, [option for option in options if option != "-c"], text, known)


def preprocessed(compiler: str, options: list[str], text: bytes, known: Path) -> str | None:
    """The key of what the preprocessor says, written to `known` with the files that it read."""
    read = known.with_suffix(f".{os.getpid()}")
    command = [compiler, *options, "-E", "-P", "-MD", "-MF", str(read)]
    done = subprocess.run(command, input=text, capture_output=True)
    if done.returncode:
        read.unlink(missing_ok=True)
        return None
    key = hashlib.sha256(repr((known.name, done.stdout)).encode()).hexdigest()[:32]
    files = read.read_text().replace("\\\n", " ").partition(":")[2].split()
    if all(map(os.path.isabs, files)):  # others depend on the folder
        read.write_text(json.dumps({"key": key, "files": hashes(files)}))
        read.replace(known)
    else:
        read.unlink()
    return key


def hashes(files: Iterable[str]) -> dict[str, str]:
    """Of the files that exist."""
    return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if os.path.exists(file)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
