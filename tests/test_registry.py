"""The registry: every call asks it which model answers, and what is about the server is said by it."""

import inspect
import json

import pytest

from bei.api.routes import by_another
from bei.api.table import TABLE
from bei.serving.model import ServedModel
from bei.serving.registry import Registry
from bei.serving.service import Service
from tests.support.calls import call, post


@pytest.fixture
def service(start_service) -> Service:
    return start_service()


@pytest.mark.parametrize("name", [None, "tiny", "any other"])
def test_of_one_model_any_name_is_accepted(service, name):
    assert Registry(service).resolve("/embed", name) is service
    answer = post(service, "/v1/embeddings", {"input": "a", "model": name})
    assert answer["model"] == "tiny"


def test_a_call_is_answered_by_the_model_that_is_resolved(start_service, monkeypatch):
    """By its route and the name in its body; its metrics are that model's."""
    service, other, asked = start_service(), start_service(served_model_name="other"), []

    def resolve(registry: Registry, route: str, name: str | None = None) -> Service:
        asked.append((route, name))
        return other if name == "other" else service

    monkeypatch.setattr(Registry, "resolve", resolve)
    assert post(service, "/v1/embeddings", {"input": "a", "model": "other"})["model"] == "other"
    assert asked[-1] == ("/v1/embeddings", "other")
    assert post(service, "/v1/embeddings", {"input": "a", "model": "mine"})["model"] == "tiny"
    assert call(service, "/embed", {"inputs": 3}).status == 422
    assert asked[-1] == ("/embed", None)
    exposition = {name: each.metrics.exposition().decode() for name, each in (("tiny", service), ("other", other))}
    for name, text in exposition.items():
        assert f'te_embed_success{{model="{name}"}} 1.0' in text
    assert 'te_request_failure{err="validation",model="tiny"} 1.0' in exposition["tiny"]
    assert "te_request_failure{" not in exposition["other"]


def test_the_default_route_is_that_of_the_model_that_is_resolved(service, monkeypatch):
    asked = []
    monkeypatch.setattr(Registry, "resolve", lambda self, route, name=None: asked.append(route) or service)
    post(service, "/", {"inputs": "a"})
    assert asked[0] == "/"


def test_a_route_without_a_body_is_about_the_server():
    for route in TABLE.routes:
        if route.handler is not by_another:
            first, _, _ = inspect.signature(route.handler, eval_str=True).parameters.values()
            assert first.annotation is (Registry if route.body is None else ServedModel), route.path


def test_the_server_drains_with_its_models(service):
    registry = Registry(service)
    assert not registry.is_draining
    registry.drain()
    assert registry.is_draining
    reply = call(service, "/health", method="GET")
    assert (reply.status, "draining" in json.loads(reply.body)["error"]) == (503, True)


def test_a_registry_loads_what_it_serves(service, monkeypatch):
    loaded = []
    monkeypatch.setattr(service, "load", lambda: loaded.append(service))
    Registry(service).load()
    assert loaded == [service]
