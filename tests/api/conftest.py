"""A service of each task on the torch engine, whose model has prompts."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bei.serving.service import Service
from tests.support.task_models import KINDS, PROMPTS, start


@pytest.fixture(scope="module")
def prompted(tmp_path_factory) -> Iterator[dict[str, Service]]:
    services = {}
    for kind, build in KINDS.items():
        checkpoint = build(tmp_path_factory.mktemp(kind))
        services[kind] = start(checkpoint if kind == "multi_vector" else replace(checkpoint, prompts=PROMPTS))
    yield services
    for service in services.values():
        service.close()
