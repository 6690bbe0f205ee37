"""The alert rules, by promtool and by what a server exposes."""

import shutil
from pathlib import Path

import pytest

from tests.support.deploy_tools import run
from tests.support.servers import ROOT

FOLDER = ROOT / "deploy" / "prometheus"


def test_promtool_runs_their_tests():
    for command in (("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")):
        done = run("promtool", *command, cwd=FOLDER)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("written", "wrong"),
    [
        ('status=~"5.."', 'status=~"[45].."'),
        ('{path!~"(/v1)?/health.*|/ping|other"}[5m])) > 0.01', "[5m])) > 0.01"),
        ("> 0.05", "> 0.1"),
        ("histogram_quantile(0.99", "histogram_quantile(0.01"),
        ("max by (model) (bei_ready)", "min by (model) (bei_ready)"),
        ("[15m]) > 2", "[15m]) > 5"),
        ("bei_device_down == 1", "bei_device_down >= 0"),
    ],
)
def test_a_wrong_rule_is_noticed(tmp_path: Path, written, wrong):
    shutil.copy(FOLDER / "alerts_test.yaml", tmp_path)
    text = (FOLDER / "alerts.yaml").read_text()
    assert written in text
    (tmp_path / "alerts.yaml").write_text(text.replace(written, wrong))
    assert run("promtool", "test", "rules", "alerts_test.yaml", cwd=tmp_path).returncode != 0
