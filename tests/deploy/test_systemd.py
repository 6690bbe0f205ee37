"""The unit of systemd: systemd's own check, and rules that it does not know."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from bei import api, cli
from tests.support.servers import ROOT

FILE = ROOT / "deploy" / "systemd" / "bei.service"


class Unit(configparser.RawConfigParser):
    """Names of settings have capital letters."""

    optionxform = staticmethod(str)


@pytest.fixture(scope="module")
def service() -> configparser.SectionProxy:
    unit = Unit(strict=False)
    unit.read(FILE)
    return unit["Service"]


def complaints(folder: Path, text: str) -> list[str]:
    """Those of systemd about a unit. Every program in it is replaced by one that is there."""
    copy = folder / FILE.name
    copy.write_text(re.sub(r"=/\S+/bin/\w+", "=/bin/true", text))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
    return [line for line in done.stderr.splitlines() if FILE.name in line]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_systemd_takes_it(tmp_path):
    assert complaints(tmp_path, FILE.read_text()) == []
    assert complaints(tmp_path, FILE.read_text().replace("Restart=", "Restarts=")) != []


def test_its_command_is_one_of_ours(service):
    program, command, *words = shlex.split(service["ExecStart"])
    assert program.endswith("/bin/bei")
    ours = cli.main.get_command(click.Context(cli.main), command)
    with ours.make_context(command, words) as context:
        assert (context.params["host"], context.params["port"]) == ("127.0.0.1", "8080")


def test_it_waits_for_a_route_of_ours_and_for_the_drain(service):
    asked = service["ExecStartPost"].split("127.0.0.1:8080")[1]
    assert asked in {route.path for route in api.ROUTES if route.public}
    drain = int(re.search(r"--drain-timeout (\d+)", service["ExecStart"])[1])
    assert int(service["TimeoutStopSec"]) > drain
