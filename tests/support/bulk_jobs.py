"""The surroundings and the texts of `bei embed` jobs."""

import os
import secrets

from tests.support.servers import ROOT
from tests.support.tiny_models import WORDS

QUIET = {
    **os.environ,
    **{"PYTHONPATH": str(ROOT / "packages"), "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},  # of the cluster that is started here
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # after 5 s it would end one that a busy machine starts slowly
}


def texts(count):
    return [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 2 + i % 9)) for i in range(count)]
