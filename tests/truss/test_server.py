"""The real Truss server around model/model.py, on loopback, without Docker: the bytes of bei.api.answer."""

import asyncio
import json
import re
from collections.abc import Iterator

import httpx
import pytest
import yaml

from bei.api import Call, answer
from bei.serving.registry import Registry
from bei.serving.service import Service
from bei.settings import Settings
from tests.support.documents import commands_of, text_of
from tests.support.servers import ROOT
from tests.support.small_models import small_model
from tests.support.truss_bundles import copy_bundle
from tests.support.truss_servers import running, truss_server

BODIES = [
    {"input": ["hello world", "a b c d"]},
    {"input": "hi", "encoding_format": "base64", "dimensions": 4},
    {"input": [101, 7592, 102]},
    {"input": "naïve \U0001f600 日本"},
    {"input": []},
    {"input": "x", "dimensions": 9999},
    {"input": 3},
    {},
]


def default_config(*, under_metadata: bool = False) -> dict:
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    if under_metadata:
        config["model_metadata"]["trt_llm"] = config.pop("trt_llm")
    return config


@pytest.fixture(scope="module", params=["trt_llm", "model_metadata"])
def truss_url(request, in_truss, truss_python, tmp_path_factory) -> Iterator[str]:
    """The server for the block at top level, and for the block under model_metadata."""
    config = default_config(under_metadata=request.param == "model_metadata")
    folder = tmp_path_factory.mktemp("truss")
    with truss_server(in_truss, truss_python, folder, copy_bundle(folder / "bundle", config)) as url:
        yield url


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service(Settings.from_file(ROOT / "config.yaml", engine="native", precision="fp32"))
    service.load()
    yield service
    service.close()


@pytest.mark.parametrize("path", ["/v1/models/model:predict", "/v1/embeddings"])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: json.dumps(body)[:40])
def test_same_bytes_as_our_server(truss_url, service, path, body):
    ours = asyncio.run(answer(Registry(service), Call("POST", "/v1/embeddings", json.dumps(body).encode())))
    theirs = httpx.post(truss_url + path, json=body, headers={"accept-encoding": "identity"})
    assert theirs.status_code == ours.status
    assert close(theirs.content, ours.body)


def close(theirs: bytes, ours: bytes) -> bool:
    """Equal bytes; vectors may differ in the last digits, because the two environments have different numpy."""
    numbers = re.compile(rb"-?\d+\.\d+(?:e-?\d+)?")
    same_text = numbers.sub(b"#", theirs) == numbers.sub(b"#", ours)
    pairs = zip(numbers.findall(theirs), numbers.findall(ours), strict=True)
    return same_text and all(abs(float(a) - float(b)) < 1e-6 for a, b in pairs)


def test_more_calls_at_once_than_anyio_has_threads(truss_url):
    async def calls() -> list[int]:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=120)) as client:
            replies = await asyncio.gather(
                *(client.post(f"{truss_url}/v1/models/model:predict", json={"input": f"text {i}"}) for i in range(120))
            )
        return [reply.status_code for reply in replies]

    assert asyncio.run(calls()) == [200] * 120


def test_the_lines_of_the_page_about_deploying_run_the_server(in_truss, truss_python, tmp_path):
    (section,) = re.findall(r"## Truss's server on this machine\n(.*?)\n## ", text_of("docs/deploying.md"), re.DOTALL)
    blocks = re.findall(r"```sh\n.*?```", section, re.DOTALL)
    _, make, _, serve = (command.words for command in commands_of(blocks[0]))
    assert (make[:2], serve) == (("python", "-c"), ("python", "server/main.py"))
    in_truss(make[2].replace("'build/truss'", repr(str(tmp_path / "truss"))))
    variables = {"PYTHONPATH": "packages", "BEI_ENGINE": "native"}
    with running([truss_python, serve[1]], tmp_path / "truss", tmp_path / "log", variables) as url:
        (asked,) = (command.words for command in commands_of(blocks[1]))
        reply = httpx.post(url + asked[2].removeprefix("127.0.0.1:8080"), content=asked[4])
    assert len(reply.raise_for_status().json()["data"][0]["embedding"]) == 4


def test_malformed_json_is_refused(truss_url):
    reply = httpx.post(f"{truss_url}/v1/models/model:predict", content=b"{")
    assert reply.status_code == 400


OF_SMALL_MODELS = {
    "reranker": [
        {"query": "ad sales", "texts": ["profits", "goals"]},
        {"query": "a", "documents": ["b"]},
        {"query": 3},
    ],
    "classifier": [{"inputs": [["profits rose"], ["a late goal"]]}, {"inputs": "x", "parameters": {}}, {"inputs": []}],
    "pii": [{"inputs": [["I am Maria Schmidt"]], "aggregation_strategy": "max"}, {"inputs": "hi"}, {"inputs": [3]}],
}


@pytest.mark.parametrize("name", OF_SMALL_MODELS)
def test_predict_is_the_default_route_of_each_task(in_truss, truss_python, tmp_path, name):
    config = yaml.safe_load((ROOT / "examples" / f"small-{name}" / "config.yaml").read_text())
    config["trt_llm"]["build"]["checkpoint_repository"]["repo"] = str(small_model(name))
    ours = Service(Settings.load(config, environ={}, engine="native", precision="fp32"))
    ours.load()
    with truss_server(in_truss, truss_python, tmp_path, copy_bundle(tmp_path / "bundle", config)) as url:
        for body in OF_SMALL_MODELS[name]:
            theirs = httpx.post(f"{url}/v1/models/model:predict", json=body, headers={"accept-encoding": "identity"})
            reply = asyncio.run(answer(Registry(ours), Call("POST", ours.model.route, json.dumps(body).encode())))
            assert theirs.status_code == reply.status
            assert close(without_id(theirs.content), without_id(reply.body))
        refused = httpx.post(f"{url}/v1/embeddings", json={"input": "a"})
        assert refused.status_code == 424
        assert "Model is not an embedding model" in refused.json()["message"]
    ours.close()
    log = (tmp_path / "log").read_text()
    assert f"predict answers as {ours.model.route}, embeddings as /v1/embeddings" in log
    assert "on the full server only: " in log


def test_predict_of_several_models_is_chosen_by_name(in_truss, truss_python, tmp_path):
    config, models = default_config(), []
    models.append(config.pop("trt_llm"))
    reranker = yaml.safe_load((ROOT / "examples" / "small-reranker" / "config.yaml").read_text())["trt_llm"]
    reranker["build"]["checkpoint_repository"]["repo"] = str(small_model("reranker"))
    config["model_metadata"]["models"] = [*models, reranker]
    with truss_server(in_truss, truss_python, tmp_path, copy_bundle(tmp_path / "bundle", config)) as url:

        def predict(body: dict) -> httpx.Response:
            return httpx.post(f"{url}/v1/models/model:predict", json=body, timeout=60)

        assert len(predict({"input": "a", "dimensions": 4}).json()["data"][0]["embedding"]) == 4
        ranked = predict({"query": "ad sales", "texts": ["profits", "goals"], "model": "small-reranker"}).json()
        assert [of["index"] for of in ranked] == [0, 1]
        unknown = predict({"input": "a", "model": "other"})
        assert (unknown.status_code, "small-reranker" in unknown.json()["error"]) == (404, True)
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "a", "model": "any"}).status_code == 200


def without_id(body: bytes) -> bytes:
    """Cohere's answers carry an id of their own."""
    return re.sub(rb'"id":"[^"]*"', b"", body)


def test_truss_handle_predicts(in_truss, tmp_path):
    bundle = copy_bundle(tmp_path / "bundle", default_config())
    code = """
import json, sys
from pathlib import Path
from truss.truss_handle.truss_handle import TrussHandle
answer = TrussHandle(Path(sys.argv[1])).predict({"input": ["hello", "world"], "dimensions": 8})
print(json.dumps([len(item["embedding"]) for item in answer["data"]]))
"""
    assert json.loads(in_truss(code, str(bundle)).splitlines()[-1]) == [8, 8]
