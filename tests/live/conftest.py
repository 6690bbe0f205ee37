"""A server of the default model, one per precision for the whole session."""

from collections.abc import Iterator

import pytest

from tests.servers import serving


@pytest.fixture(scope="session", params=["fp32", "bf16"])
def precision(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def url(precision, tmp_path_factory) -> Iterator[str]:
    with serving("--precision", precision, log=tmp_path_factory.mktemp("server") / "log") as url:
        yield url
