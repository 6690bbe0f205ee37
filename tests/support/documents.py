"""The pages, and the code in them."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.servers import ROOT

FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
DOCUMENTS = [name for name in FILES if name.endswith(".md")]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SHELL = ("sh", "")
_PROGRAM = re.compile(r"(?:[A-Z_]+=\S+ )*(?:[\w./-]+/)?([a-z][a-z0-9-]*)(?: |$)")
_OTHER_LANGUAGES = {"new", "await", "async", "sum", "late", "overdue"}
"""First words of code in other languages, and of columns with their unit."""


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def code_of(text: str) -> list[str]:
    """Everything between backticks, and every line of a block of code."""
    lines = [line for _, block in _BLOCK.findall(text) for line in block.splitlines()]
    return [*lines, *_indented(text), *_inline(text)]


def blocks_of(name: str, language: str) -> list[str]:
    """The blocks of code of a page that are in this language."""
    return [block for of, block in _BLOCK.findall(text_of(name)) if of == language]


@dataclass(frozen=True)
class Command:
    """`words` begin with the program's name, without its folder. One in a sentence may be a part: `bei embed`."""

    words: tuple[str, ...]
    in_a_sentence: bool

    def __str__(self) -> str:
        return shlex.join(self.words)


def commands_of(text: str) -> Iterator[Command]:
    """Those of blocks of a shell, of indented lines, and of backticks that hold more than one word."""
    shell = "".join(block for language, block in _BLOCK.findall(text) if language in _SHELL)
    for line in (*shell.replace("\\\n", "").splitlines(), *_indented(text)):
        yield from _command(line, in_a_sentence=False)
    for code in _inline(text):
        if " " in code:
            yield from _command(code, in_a_sentence=True)


def _command(code: str, *, in_a_sentence: bool) -> Iterator[Command]:
    found = _PROGRAM.match(code)
    if found and found[1] not in _OTHER_LANGUAGES:
        _, *rest = shlex.split(code[found.start(1) :], comments=True)
        yield Command((found[1], *rest), in_a_sentence)


def _indented(text: str) -> list[str]:
    return re.findall(r"^ {4}(\S.*)$", _BLOCK.sub("", text).replace("\\\n", ""), re.MULTILINE)


def _inline(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", _BLOCK.sub("", text))
