"""A server of the default model, one per precision for the whole session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import serving

# Elsewhere 16 bits are emulated, which takes minutes here; the engines' own tests run them.
PRECISIONS = ["fp32", *(["bf16"] if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else [])]


@pytest.fixture(scope="session", params=PRECISIONS)
def precision(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def url(precision, tmp_path_factory) -> Iterator[str]:
    with serving("--precision", precision, log=tmp_path_factory.mktemp("server") / "log") as url:
        yield url
