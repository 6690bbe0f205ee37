"""Bars on a terminal, and few lines in a log."""

import logging
import os
import pty
import subprocess
import sys
import termios

import pytest

from bei import progress
from bei.progress import Stage
from tests.support.servers import ROOT

WORK = """
from bei import progress
progress._TERMINAL_SECONDS = 0.0
with progress.Stage("downloading", 4_000_000) as stage:
    stage.add(1_000_000)
with progress.Bar(200, "texts", done=50, more="tokens") as bar:
    bar.add(50, 900)
"""


def test_a_terminal_shows_the_share_and_the_time_that_is_left():
    """A real one: bars ask how wide it is."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "packages")}
    subprocess.run([sys.executable, "-c", WORK], stderr=theirs, env=environment, check=True, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "downloading:  25%" in shown and "1.00M/4.00M" in shown and "<00:0" in shown
    assert "50%" in shown and "100/200" in shown and " tokens/s" in shown


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
