"""Calls of bei.api.answer without a socket, and the bodies that hypothesis makes for them."""

import asyncio
import json

import pytest
from hypothesis import strategies as st

from bei import api
from bei.api import Call, Reply
from bei.serving.registry import Registry

TEXTS = ["the cat", "a big dog"]


def call(service, path: str, body=None, method: str = "POST", **headers: str) -> Reply:
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(api.answer(Registry(service), Call(method, path, raw, named)))


def post(service, path: str, body, **headers: str):
    reply = call(service, path, body, **headers)
    assert reply.status == 200, reply.body
    return json.loads(reply.body)


def give_up(service) -> None:
    """A call that its client leaves as soon as it has begun."""

    async def leave() -> None:
        answering = asyncio.ensure_future(
            api.answer(Registry(service), Call("POST", "/embed", b'{"inputs": ["a", "b"]}'))
        )
        await asyncio.sleep(0)
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)

    asyncio.run(leave())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    *("input", "inputs", "ids", "dimensions", "normalize", "truncate", "truncation_direction", "prompt_name"),
    *("query", "texts", "documents", "top_n", "raw_scores", "text_1", "text_2", "aggregation_strategy", "input_type"),
    *("embedding_types", "output_dimension", "max_tokens_per_doc", "ignore_labels", "return_documents"),
]
bodies = st.one_of(
    st.binary(max_size=60),
    st.dictionaries(st.sampled_from([*FIELDS, "encoding_format", "parameters"]), json_values, max_size=5),
)
PATHS = [route.path for route in api.ROUTES if route.method == "POST" and route.body]


def refused(service, path: str, body) -> tuple[int, str]:
    reply = call(service, path, body)
    answer = json.loads(reply.body)
    return reply.status, said(answer)


def said(answer: dict) -> str:
    """The message of an error, in any family's shape."""
    error = answer.get("error", answer)
    return error["message"] if isinstance(error, dict) else error


def near(found, expected) -> bool:
    """The same JSON except for the last digits of its numbers, which depend on the other texts of the batch."""
    if isinstance(expected, float):
        return found == pytest.approx(expected, abs=1e-5)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(near(found[key], of) for key, of in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(near, found, expected))
    return found == expected
