"""Real client libraries of Python, JavaScript and Java against one live server of five models: what they get is what
plain HTTP gets from a server of one model. No client names a model, except by a base URL where every model has the
path."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.clients import java_calls
from tests.clients.calls import CALLS
from tests.support.parity import cosines
from tests.support.shared import once

HERE = Path(__file__).parent
JS_CALLS = re.findall(r"async (js_\w+)\(", (HERE / "calls.mjs").read_text())
MODELS = ("embedding", "reranker", "classifier", "pii", "splade")
TEXTS = ["What is Deep Learning?", "Deep Learning is...", "The striker scored twice."]
QUERY = "Ad sales boost Time Warner profit"
DOCUMENTS = [
    "The striker scored twice in the second half.",
    "Quarterly profits at US media giant TimeWarner jumped 76% on higher advert sales.",
    "A new phone with two cameras was shown.",
]
PEOPLE = ["My name is Maria Schmidt and I live in Springfield.", "Call John Baker at 415-555-0134."]


@pytest.fixture(scope="session")
def given(task_urls, server_of_all) -> str:
    """The argument of calls.py and calls.mjs, in JSON."""
    names = [model["id"] for model in httpx.get(f"{server_of_all}/v1/models").raise_for_status().json()["data"]]
    bases = {kind: f"{server_of_all}/models/{name}" for kind, name in zip(MODELS, names, strict=True)}
    urls = {**dict.fromkeys(MODELS, server_of_all), "by_score": task_urls["by_score"]}
    texts = {"texts": TEXTS, "query": QUERY, "documents": DOCUMENTS, "people": PEOPLE}
    return json.dumps({"urls": urls, "bases": bases, **texts})


def run(command: list[str | Path], **options: Any) -> dict[str, dict[str, Any]]:
    environment = {
        name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"
    }  # hub's client obeys it
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def asked_once(folder: Path, ask: Callable[[], dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """By whichever worker needs the answers first."""
    once(folder, lambda unfinished: (unfinished / "answers.json").write_text(json.dumps(ask())))
    return json.loads((folder / "answers.json").read_text())


@pytest.fixture(scope="session")
def python_answers(clients, given, of_all_workers) -> dict[str, dict[str, Any]]:
    return asked_once(of_all_workers / "python", lambda: run([clients / "bin" / "python", HERE / "calls.py", given]))


@pytest.fixture(scope="session")
def js_answers(clients, given, of_all_workers) -> dict[str, dict[str, Any]]:
    # From standard input, so that modules are looked for where node_modules is.
    command = [clients / "bin" / "node", "--input-type=module", "-", given]
    source = (HERE / "calls.mjs").read_text()
    return asked_once(of_all_workers / "javascript", lambda: run(command, cwd=clients / "js", input=source))


@pytest.fixture(scope="session")
def java_answers(clients, given, of_all_workers) -> dict[str, dict[str, Any]]:
    java, jars = shutil.which("java"), clients / "java" / "usr" / "share" / "java"
    if java is None or not jars.exists():
        pytest.skip("no Java, or no Apache HttpClient of Debian, when the environment of the clients was made")
    classes = os.pathsep.join(str(jars / f"{name}.jar") for name in java_calls.JARS)

    def ask() -> dict[str, dict[str, Any]]:
        command, told = [java, "-cp", classes, HERE / "Calls.java"], java_calls.lines(json.loads(given))
        done = subprocess.run(command, input=told, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return java_calls.results(done.stdout)

    return asked_once(of_all_workers / "java", ask)


@pytest.fixture(scope="session")
def expected(task_urls) -> dict[str, Any]:
    """The answers over plain HTTP, in the shapes of calls.py."""

    def post(server: str, path: str, **body: Any) -> Any:
        return httpx.post(task_urls[server] + path, json=body).raise_for_status().json()

    similarity = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}
    entities = post("pii", "/predict_tokens", inputs=PEOPLE, aggregation_strategy="simple")
    chunks = post("embedding", "/v1/embeddings", input=TEXTS, late_chunking=True)["data"]
    return {
        "vectors": post("embedding", "/embed", inputs=TEXTS),
        "chunks": [item["embedding"] for item in chunks],
        "cosines": post("embedding", "/similarity", inputs=similarity),
        "scores": [rank["score"] for rank in post("reranker", "/rerank", query=QUERY, texts=DOCUMENTS)],
        "labels": [rows[0]["label"] for rows in post("classifier", "/predict", inputs=[[text] for text in DOCUMENTS])],
        "spans": [[[entity["start"], entity["end"]] for entity in of_text] for of_text in entities],
    }


def check(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    ((kind, value),) = answer.items()
    match kind:
        case "failed":
            pytest.fail(value)
        case "vectors":
            assert cosines(np.array(value), np.array(expected["vectors"])).min() >= 0.9999
        case "vector":
            assert cosines(np.array([value]), np.array(expected["vectors"][:1])).min() >= 0.9999
        case "signs":
            np.testing.assert_array_equal(value, np.packbits(np.array(expected["vectors"]) > 0, axis=1))
        case "chunks":
            assert cosines(np.array(value), np.array(expected["chunks"])).min() >= 0.9999
        case "logits":
            shares = [[place, float(1 / (1 + np.exp(-logit)))] for place, logit in value]
            check({"ranks": shares}, expected)
        case "cosines":
            np.testing.assert_allclose(value, expected["cosines"], atol=1e-4)
        case "ranks":
            assert len(value) in (2, 3)
            np.testing.assert_allclose(
                [score for _, score in value], [expected["scores"][i] for i, _ in value], atol=1e-4
            )
            assert int(np.argmax(expected["scores"])) == max(value, key=lambda rank: rank[1])[0] == 1
        case "message":
            assert "`dimensions` must be between 1 and 384, not 9999" in value or "is outside the vocabulary" in value
        case _:
            assert value == expected[kind]


@pytest.mark.parametrize("name", CALLS)
def test_python(python_answers, expected, name):
    check(python_answers[name], expected)


@pytest.mark.parametrize("name", JS_CALLS)
def test_javascript(js_answers, expected, name):
    check(js_answers[name], expected)


@pytest.mark.parametrize("name", java_calls.CALLS)
def test_java(java_answers, expected, name):
    check(java_answers[name], expected)


def test_what_the_servers_say_is_not_trivial(expected):
    assert expected["labels"] == ["sports", "business", "tech"]
    names = [PEOPLE[0][start:end] for start, end in expected["spans"][0]]
    assert {"Maria", "Schmidt"} <= set(names)


@pytest.mark.parametrize("name", ["cohere_v2_rerank", "haystack_tei_ranker", "js_cohere_v2_rerank"])
def test_best_first(python_answers, js_answers, name):
    scores = [score for _, score in {**python_answers, **js_answers}[name]["ranks"]]
    assert scores == sorted(scores, reverse=True)
