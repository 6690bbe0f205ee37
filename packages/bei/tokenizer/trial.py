"""The first reading of a tokenizer.json that is unlike those we know, by a process that may take little: the library
ends its process where memory is short."""

import resource
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer as Library

from bei import processes
from bei.errors import SetupError, one_line
from bei.tokenizer import limits

MEMORY, SECONDS = 4 << 30, 60


def try_first(file: str) -> None:
    """Raises SetupError where it cannot be read."""
    reader = processes.start("bei.tokenizer.trial", file, MEMORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with reader:
        try:
            said, _ = reader.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise SetupError(f"{file} is not read within {SECONDS} s") from None
        finally:
            reader.kill()
    if reader.returncode:
        why = one_line(said.decode(errors="replace")[-300:]) or f"it asks for more than {MEMORY >> 20} MiB of memory"
        raise SetupError(f"{file} cannot be read: {why}")


def main(file: str, memory: str) -> int:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + int(memory), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        library = Library.from_file(file)
        limits.check(library)
        library.encode("a")
    except BaseException as exc:  # a panic of the library is no Exception
        sys.stdout.write(str(exc))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
