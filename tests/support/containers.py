"""The instructions of the Dockerfiles."""

import re

from tests.support.servers import ROOT

DEPLOY = ROOT / "deploy"
QUEUE_SECONDS = 30  # Scheduler.close gives the queue so long


def instructions(name: str) -> list[tuple[str, str]]:
    """Every instruction and its arguments, continuation lines joined."""
    lines = (line for line in (DEPLOY / name).read_text().splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]


def given(name: str, instruction: str) -> list[str]:
    return [arguments for which, arguments in instructions(name) if which == instruction]


def environment(name: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(given(name, "ENV"))))
