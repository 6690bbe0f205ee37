"""Bars on a terminal, and few lines in a log."""

import logging
import os
import pty
import re
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from bei import progress
from bei.engines.native.levels import LEVELS
from bei.progress import Stage
from tests.support.servers import ROOT

WORK = """
import sys
from pathlib import Path
import numpy as np
from bei import progress
from bei.engines import plan
from bei.engines.native import library
from bei.engines.native.levels import LEVELS
progress._TERMINAL_SECONDS, progress._TICK = 0.0, 0.01
with progress.Stage("downloading", 4_000_000) as stage:
    stage.add(1_000_000)
with progress.Bar(200, "texts", done=50, more="tokens") as bar:
    bar.add(50, 900)
with progress.Wait("waiting", 0.2) as wait:
    while wait._bar is not None and wait._bar.n < 0.15:
        pass
plan.in_memory(plan.Part(str(i), lambda: {"": np.zeros(3)}) for i in range(4))
library.compile_into(Path(sys.argv[1], "made.so"), LEVELS[0], (sys.argv[2],))
"""
COMPILER = """#!/bin/sh
cat > /dev/null
while [ $# -gt 1 ]; do shift; done
echo made > "$1"
"""


@pytest.fixture
def work(tmp_path) -> dict[str, Any]:
    """The arguments of `subprocess.run` for all bars, with a compiler that is done at once."""
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "packages")}
    command = [sys.executable, "-c", WORK, str(tmp_path), str(compiler)]
    return {"args": command, "env": environment, "check": True, "timeout": 60}


def all_of(terminal: int) -> str:
    """A terminal holds 4 kB, and then its writer waits."""
    found = b""
    with suppress(OSError):  # its other end is closed
        while some := os.read(terminal, 1 << 16):
            found += some
    return found.decode()


def test_a_terminal_shows_the_share_and_the_time_that_is_left(work):
    """A real one: bars ask how wide it is."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    with ThreadPoolExecutor(1) as beside:
        reading = beside.submit(all_of, ours)
        subprocess.run(**work, stderr=theirs)
        os.close(theirs)
        shown = reading.result()
    os.close(ours)
    assert "downloading:  25%" in shown and "1.00M/4.00M" in shown and "<00:0" in shown
    assert "50%" in shown and "100/200" in shown and " tokens/s" in shown
    assert re.search(r"waiting:  [1-9]\d%.* 00:0\d<00:0\d", shown)
    assert "packing:  75%" in shown and "3.00/4.00" in shown
    assert f"compiling for {LEVELS[0].name}:   0%" in shown


def test_elsewhere_only_a_bar_of_its_own_work_is_a_line(work):
    """Downloads, builds and waits are stages of a server's start, too, whose log may be JSON."""
    said = subprocess.run(**work, stderr=subprocess.PIPE, text=True).stderr
    assert "100/200" in said
    assert not any(name in said for name in ("downloading", "waiting", "packing", "compiling"))


@pytest.mark.parametrize(("total", "told"), [(4_000_000, "1.00MB of 4.00M"), (None, "1.00MB of an unknown number")])
def test_a_log_gets_lines_of_its_own_form(monkeypatch, caplog, capsys, total, told):
    caplog.set_level(logging.INFO, "bei")
    with Stage("downloading", total) as stage:
        stage.add(600_000)
        assert caplog.messages == [], "no line before its time"
        monkeypatch.setattr(progress, "_STAGE_SECONDS", -1.0)
        stage.add(400_000)
    assert caplog.messages == [f"downloading: {told}"]
    assert capsys.readouterr().err == ""
