"""The registry: every call asks it which model answers, and what is about the server is said by it."""

import asyncio
import inspect
import json
import re
from collections.abc import Iterator

import pytest

from bei import api
from bei.api import Call, Reply
from bei.api.routes import by_another
from bei.api.table import TABLE
from bei.errors import SetupError
from bei.serving.model import ServedModel
from bei.serving.registry import PLACEHOLDERS, Registry
from bei.serving.service import Service
from bei.settings import Settings
from tests.support.calls import call, post
from tests.support.configs import tiny_config
from tests.support.exposition import gained
from tests.support.task_models import KINDS, OWN, start


@pytest.fixture
def service(start_service) -> Service:
    return start_service()


@pytest.mark.parametrize("name", [None, "tiny", "any other"])
def test_of_one_model_any_name_is_accepted(service, name):
    assert Registry(service).resolve("embed", name) is service
    answer = post(service, "/v1/embeddings", {"input": "a", "model": name})
    assert answer["model"] == "tiny"


# -- several models ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Iterator[dict[str, Service]]:
    """A model of each task, and a second embedder, in a server that knows a third name for it."""
    made = {}
    for kind, make in {**KINDS, "second": KINDS["embedding"]}.items():
        checkpoint = make(tmp_path_factory.mktemp(kind))
        made[kind] = start(checkpoint, served_model_name=kind)
    first = made["embedding"]  # the server's settings are those of the first
    first.settings = first.settings.model_copy(update={"alias": ("other=second",)})
    yield made
    for service in made.values():
        service.close()


def answered(services, path: str, body=None, method: str = "POST", **call: str) -> Reply:
    registry = Registry(*services.values())
    raw = b"" if body is None else json.dumps(body).encode()
    return asyncio.run(api.answer(registry, Call(method, path, raw, **call)))


@pytest.mark.parametrize(("kind", "path", "body"), [(kind, *of) for kind, of in OWN.items() if kind != "multi_vector"])
def test_without_a_name_the_first_model_whose_task_is_the_route_answers(services, kind, path, body):
    order = ["multi_vector", "second", "reranker", "classifier", "sparse", "embedding", "entities", "list_reranker"]
    order = [name for name in order if (kind, name) != ("list_reranker", "reranker")]
    reply = answered({name: services[name] for name in order}, path, body)
    first = "second" if kind == "embedding" else kind  # of two embedders
    alone = answered({first: services[first]}, path, body)
    assert (reply.status, json.loads(reply.body)) == (200, json.loads(alone.body))


def test_without_a_model_of_the_task_one_that_has_the_ability_answers(services):
    path, body = OWN["reranker"]
    reply = answered({name: services[name] for name in ("entities", "multi_vector", "second")}, path, body)
    assert reply.body == answered({"multi_vector": services["multi_vector"]}, path, body).body


BASE_URLS = [
    *((f"/models/{kind}{path}", path, body, kind) for kind, (path, body) in OWN.items()),
    ("/models/other/v1/embeddings", *OWN["embedding"], "second"),
    ("/models/classifier", "/", {"inputs": "the cat"}, "classifier"),
    ("/models/classifier/", "/", {"inputs": "the cat"}, "classifier"),
    ("/models/reranker/predict", "/predict", {"inputs": [["a", "b"]]}, "reranker"),
]


@pytest.mark.parametrize(("below", "path", "body", "kind"), BASE_URLS)
def test_below_a_base_url_a_call_is_about_that_model(services, below, path, body, kind):
    reply = answered(services, below, {**body, "model": "gpt-4"})
    alone = answered(services, path, {**body, "model": kind})
    assert (reply.status, json.loads(reply.body)) == (200, json.loads(alone.body))


def test_below_a_base_url_operations_are_about_that_model(services):
    assert json.loads(answered(services, "/models/other/info", method="GET").body)["served_model_name"] == "second"
    listed = json.loads(answered(services, "/models/other/v1/models", method="GET").body)["data"]
    assert [model["id"] for model in listed] == ["second"]
    assert answered(services, "/models/second/health", method="GET").status == 200


@pytest.mark.parametrize("path", ["/models/gpt-4/embed", "/models/second/nothing", "/models//embed", "/models/"])
def test_below_no_base_url_there_is_nothing(services, path):
    assert answered(services, path, {"inputs": "a"}).status in (404, 405)


def test_an_unfit_route_below_a_base_url_is_refused(services):
    reply = answered(services, "/models/classifier/embed", {"inputs": "a"})
    assert (reply.status, "its task is classifier" in json.loads(reply.body)["error"]) == (424, True)


@pytest.mark.parametrize("name", [*sorted(PLACEHOLDERS), "Model", "ANY"])
def test_a_placeholder_counts_as_no_name(services, name):
    reply = answered(services, "/rerank", {**OWN["reranker"][1], "model": name})
    assert json.loads(reply.body) == json.loads(answered(services, *OWN["reranker"]).body)


@pytest.mark.parametrize(("name", "is_of"), [("second", "second"), ("other", "second"), ("embedding", "embedding")])
def test_a_name_chooses_a_model(services, name, is_of):
    reply = answered(services, "/v1/embeddings", {"input": "a", "model": name})
    assert json.loads(reply.body)["model"] == is_of


def test_a_name_is_one_of_a_model_that_may_not_fit(services):
    reply = answered(services, "/embed", {"inputs": "a", "model": "reranker"})
    assert (reply.status, "its task is reranker" in json.loads(reply.body)["error"]) == (424, True)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/rerank", "/info", "/health/ready", "/"])
def test_a_name_that_is_not_served_is_refused(services, path):
    body = {"input": "a", "inputs": "a", "query": "a", "texts": ["a"]}
    if path in ("/info", "/health/ready"):
        reply = answered(services, path, method="GET", query="model=gpt-4")
    else:
        reply = answered(services, path, {**body, "model": "gpt-4"})
    told = json.loads(reply.body)
    message = told["error"]["message"] if path.startswith("/v1") else told["error"]
    assert reply.status == 404
    assert message == f"the model 'gpt-4' is not served; served: {', '.join(services)}"
    if path.startswith("/v1"):
        assert (told["code"], told["error"]["code"], told["error"]["param"]) == (*["model_not_found"] * 2, "model")


def test_every_model_is_listed(services):
    listed = {of["id"]: of for of in json.loads(answered(services, "/v1/models", method="GET").body)["data"]}
    assert list(listed) == list(services)
    assert [of["task"] for of in listed.values()] == [*KINDS, "embedding"]
    assert {of["state"] for of in listed.values()} == {"ready"}
    assert {of["max_model_len"] for of in listed.values()} == {60, 64, 131072}
    assert [of["dimensions"] is not None for of in listed.values()] == [True, *[False] * 4, True, True, True]
    one = json.loads(answered(services, "/v1/models/other", method="GET").body)
    assert one == listed["second"]
    assert answered(services, "/v1/models/nothing", method="GET").status == 404


def test_info_is_about_the_first_model_or_a_named_one(services):
    names = [
        json.loads(answered(services, "/info", method="GET", query=query).body)["served_model_name"]
        for query in ("", "model=classifier", "model=other")
    ]
    assert names == ["embedding", "classifier", "second"]


def test_the_default_route_is_that_of_the_named_model(services):
    reply = answered(services, "/", {"inputs": "the cat", "model": "classifier"})
    assert {of["label"] for of in json.loads(reply.body)} == {"bad", "fair", "good"}
    assert isinstance(json.loads(answered(services, "/", {"inputs": ["the cat"]}).body)[0][0], float)


def test_metrics_are_of_the_model_that_answers(services):
    before = services["second"].metrics.exposition().decode()
    answered(services, "/v1/embeddings", {"input": "a", "model": "second"})
    after = services["second"].metrics.exposition().decode()
    count = re.compile(r'te_embed_success(?:_total)?\{model="second"\} (\S+)')
    assert float(count.search(after)[1]) == float(count.search(before)[1]) + 1
    failed = answered(services, "/embed", {"inputs": 3})
    assert failed.status == 422
    assert (
        'te_request_failure{err="validation",model="embedding"}' in services["embedding"].metrics.exposition().decode()
    )


def test_a_model_that_is_not_served_is_no_failure_of_another_one(services):
    metrics = services["embedding"].metrics  # the server's, which are the first model's
    failed = {"input": "a", "model": "gpt-4"}
    new = gained(metrics, lambda: answered(services, "/v1/embeddings", failed))
    assert new.pop('bei_requests_total{path="/v1/embeddings",status="404"}') == 1
    assert new == {'te_request_failure{err="validation",model=""}': 1}


@pytest.mark.parametrize("path", ["/info", "/health/ready"])
def test_a_query_of_many_parameters_is_refused_unread(services, path):
    """64 KiB of them would hold the loop for 10 ms; probes need no key."""
    reply = answered(services, path, method="GET", query="a=1&" * 15_000)
    assert reply.status == 400 and b"more than 64 parameters" in reply.body
    assert answered(services, path, method="GET", query="a=1&" * 63 + "model=second").status == 200


def test_a_server_is_ready_when_all_models_are(services):
    assert answered(services, "/health/ready", method="GET").status == 200
    state, services["reranker"].readiness.state = services["reranker"].readiness.state, "draining"
    try:
        assert answered(services, "/health/ready", method="GET").status == 503
        assert answered(services, "/health/ready", method="GET", query="model=second").status == 200
        assert answered(services, "/health/ready", method="GET", query="model=reranker").status == 503
    finally:
        services["reranker"].readiness.state = state


def test_while_a_task_is_unknown_only_named_models_answer(services):
    loading = Service(Settings.load(tiny_config(), environ={}, served_model_name="loading"))
    both = {"loading": loading, **services}
    assert answered(both, "/embed", {"inputs": "a"}).status == 503
    assert answered(both, "/embed", {"inputs": "a", "model": "second"}).status == 200
    listed = json.loads(answered(both, "/v1/models", method="GET").body)["data"][0]
    assert (listed["state"], listed["task"], listed["dimensions"]) == ("loading", None, None)


@pytest.mark.parametrize(
    ("names", "alias", "told"),
    [
        (["a", "a"], (), "two models are served as 'a'; set runtime.served_model_name of one of them"),
        (["a", "b"], "c=d", "--alias c=d: 'd' is not served; served: a, b"),
        (["a", "b"], "a=b", "--alias a=b: 'a' is another model's own name; choose another alias"),
        (["a", "b"], "c=a,c=b", "--alias c=b: 'c' is an alias of another model already; choose another one"),
    ],
)
def test_names_are_clear(names, alias, told):
    settings = [
        Settings.load(tiny_config(), environ={}, served_model_name=name, alias=alias, repo=str(i))
        for i, name in enumerate(names)
    ]
    with pytest.raises(SetupError, match=re.escape(told)):
        Registry.of(settings)


@pytest.mark.parametrize("kind", KINDS)
def test_each_route_says_which_ability_it_needs(services, kind, start_service):
    """A route without one may be asked of any model, and a model without the ability refuses the route. The ability
    that /pooling needs is named by the `task` of its body."""
    service = start_service(checkpoint=services[kind].checkpoint)
    for route in TABLE.routes:
        if (
            route.example is not None
            and route.stands_for is None
            and route.method == "POST"
            and route.path != "/pooling"
        ):
            reply = answered({kind: service}, route.path, route.example)
            fits = route.ability is None or service.model.has(route.ability)
            assert (b"its task is" not in reply.body and b"is not available for" not in reply.body) == fits, route.path


def test_a_route_without_a_body_is_about_the_server():
    for route in TABLE.routes:
        if route.handler is not by_another:
            first, _, _ = inspect.signature(route.handler, eval_str=True).parameters.values()
            of_server = route.body is None or route.of_server
            assert first.annotation is (Registry if of_server else ServedModel), route.path


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
