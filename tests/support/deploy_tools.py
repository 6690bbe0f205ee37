"""promtool, helm and kubectl: the machine's own, or those of .venv-deploy (tests/deploy/tools.py)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.servers import ROOT

FETCHED = ROOT / ".venv-deploy" / "bin"


def run(name: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a tool on the files in `cwd`, without a cluster; skips the test where there is no such tool."""
    fetched = FETCHED / name
    program = str(fetched) if fetched.exists() else shutil.which(name)
    if program is None:
        pytest.skip(f"no {name}, and none was fetched (make .venv-deploy/ok)")
    environment = {**os.environ, "KUBECONFIG": "/dev/null", "HELM_CACHE_HOME": "/dev/null"}
    return subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, env=environment)
