"""A field or a model whose name nobody knows changes no answer, and the log has it once."""

import asyncio
import json
import logging

import pytest

from bei import api
from bei.api import Call
from bei.logs import Firsts
from bei.serving.registry import Registry
from tests.support.calls import near, post

BODY = {"input": "the cat"}


@pytest.fixture
def ask(prompted, caplog):
    """ask(path, body, ...): the lines about names that several calls of one server leave."""
    caplog.set_level(logging.INFO, "bei")

    async def all_of(registry, calls) -> None:
        for path, body in calls:
            reply = await api.answer(registry, Call("POST", path, json.dumps(body).encode()))
            assert reply.status == 200, reply.body

    def run(*calls, kind: str = "embedding") -> list[str]:
        caplog.clear()
        asyncio.run(all_of(Registry(prompted[kind]), calls))
        return [line for line in caplog.messages if line.startswith(("the field", "a request names"))]

    return run


def test_a_field_that_nobody_knows_is_named_once_with_the_closest_one(prompted, ask):
    path, typo = "/v1/embeddings", {**BODY, "dimension": 3}
    assert near(post(prompted["embedding"], path, typo), post(prompted["embedding"], path, BODY))
    line = f"the field 'dimension' of {path} is ignored: the route has none of that name; did you mean `dimensions`?"
    assert ask((path, typo), (path, typo), ("/embed", {"inputs": "a", "dimension": 4})) == [line]


def test_fields_of_objects_within_a_body_are_named_too(ask):
    (line,) = ask(("/predict", {"inputs": "a", "parameters": {"topk": 1}}), kind="classifier")
    assert line.endswith("did you mean `top_k`?")
    (line,) = ask(("/vertex", {"instances": [{"inputs": "a", "truncat": True}]}))
    assert line.endswith("did you mean `truncate`?")
    (line,) = ask(("/embed", {"inputs": ["a"] * 3, "zzz": "x" * (1 << 19)}))  # a large body is read in pieces
    assert line == "the field 'zzz' of /embed is ignored: the route has none of that name"


def test_fields_without_effect_and_those_that_request_nothing_are_not_named(ask):
    assert ask(("/v1/embeddings", {**BODY, "user": "u", "priority": 1, "dimensions": None, "modality": "text"})) == []


def test_a_model_that_is_not_served_is_named_once(prompted, ask):
    name = prompted["embedding"].name
    line = "a request names the model 'other'; the only one that is served answers it"
    bodies = [{**BODY, "model": model} for model in ("other", "other", name, "any", "not-required")]
    assert ask(*(("/v1/embeddings", body) for body in bodies)) == [line]


def test_a_client_cannot_fill_the_log(ask):
    fields = [f"field_{i}_{'x' * 5000}" for i in range(300)]
    assert len(ask(("/v1/embeddings", {**BODY, **dict.fromkeys(fields)}))) == 16
    lines = ask(*(("/v1/embeddings", {**BODY, name: 1}) for name in fields))
    assert len(lines) == 100
    assert max(map(len, lines)) < 400
    few = Firsts(2)
    assert [few.is_new(name) for name in "aabcb"] == [True, False, True, False, False]
