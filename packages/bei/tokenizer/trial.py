"""The first reading of an unusual tokenizer.json, in a process with little memory: out of memory, the library ends its
process."""

import signal
import subprocess
import sys

from tokenizers import Tokenizer as Library

from bei import processes
from bei.errors import SetupError, one_line
from bei.tokenizer import limits

MEMORY, SECONDS = 4 << 30, 60


def try_first(file: str) -> None:
    """Raises SetupError if the file cannot be read."""
    reader = processes.start("bei.tokenizer.trial", file, MEMORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with reader:
        try:
            said, _ = reader.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise SetupError(f"{file} is not read within {SECONDS} s") from None
        finally:
            reader.kill()
    if reader.returncode:
        why = one_line(said.decode(errors="replace")[-300:]) or _end(-reader.returncode)
        raise SetupError(f"{file} cannot be read: {why}")


def _end(number: int) -> str:
    if number == signal.SIGSEGV:
        return "its reader ran out of stack; is one of its tokens very long?"
    return f"it asks for more than {MEMORY >> 20} MiB of memory"


def main(file: str, memory: str) -> int:
    processes.bound_memory(int(memory))
    try:
        library = Library.from_file(file)
        limits.check(library)
        library.encode("a")
    except BaseException as exc:  # a panic of the library is not an Exception
        sys.stdout.write(str(exc))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
