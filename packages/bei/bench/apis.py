"""The APIs that are measured: which path, which body, and how many results an answer has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

import httpx

from bei.errors import SetupError, one_line

_PROBE = ("What is Deep Learning?", "Berlin is a city.")
_SECONDS = 60.0
_LISTS = ("/v1/models", "/models", "/info")


@dataclass(frozen=True)
class API:
    """`body` makes the body for some texts and a model's name; `count` is the number of an answer's results."""

    name: str
    path: str
    body: Callable[[Sequence[str], str], Mapping[str, Any]]
    count: Callable[[Any], int]


def _input(texts: Sequence[str], model: str) -> Mapping[str, Any]:
    return {"input": texts, "model": model}


def _cohere(texts: Sequence[str], model: str) -> Mapping[str, Any]:
    return {"texts": texts, "model": model, "input_type": "search_document", "embedding_types": ["float"]}


def _documents(texts: Sequence[str], model: str) -> Mapping[str, Any]:
    return {"query": _PROBE[0], "documents": texts, "model": model}


APIS = {
    api.name: api
    for api in (
        API("openai", "/v1/embeddings", _input, lambda answer: len(answer["data"])),
        API("infinity", "/embeddings", _input, lambda answer: len(answer["data"])),
        API("tei", "/embed", lambda texts, model: {"inputs": texts}, len),
        API("cohere", "/v2/embed", _cohere, lambda answer: len(answer["embeddings"]["float"])),
        API("tei-rerank", "/rerank", lambda texts, model: {"query": _PROBE[0], "texts": texts}, len),
        API("infinity-rerank", "/rerank", _documents, lambda answer: len(answer["results"])),
        API("cohere-rerank", "/v2/rerank", _documents, lambda answer: len(answer["results"])),
        API("tei-predict", "/predict", lambda texts, model: {"inputs": [[text] for text in texts]}, len),
    )
}
"""By name, in the order in which they are tried."""


def find(url: SplitResult, named: str | None, model: str | None, headers: Mapping[str, str]) -> tuple[API, str]:
    """The API that a server answers, and the name of its model. Raises SetupError with the answer to each that it does
    not."""
    base = url.geturl().rstrip("/")
    with httpx.Client(headers=dict(headers), timeout=_SECONDS, trust_env=False) as client:
        try:
            model = model or _model(client, base)
            tried = []
            for api in [APIS[named]] if named else APIS.values():
                refusal = _refusal(client, base + api.path, api, model)
                if refusal is None:
                    return api, model
                tried.append(f"POST {api.path}: {refusal}")
        except httpx.TransportError as exc:
            raise SetupError(f"{base} does not answer: {one_line(exc)}; is it the address of a server?") from None
        except httpx.InvalidURL as exc:
            raise SetupError(f"{base}: {one_line(exc)}") from None
    raise SetupError(f"{base} answers none of the APIs ({'; '.join(tried)}); name the model with --model")


def _model(client: httpx.Client, base: str) -> str:
    """The first model that a server lists, or `default`."""
    for path in _LISTS:
        answer = client.get(base + path)
        if answer.status_code == 200:
            try:
                found = answer.json()
                return str(found["data"][0]["id"] if "data" in found else found["model_id"])
            except (ValueError, LookupError, TypeError):
                continue
    return "default"


def _refusal(client: httpx.Client, url: str, api: API, model: str) -> str | None:
    """Why a server does not answer two texts by this API; None if it does."""
    answer = client.post(url, json=api.body(_PROBE, model))
    if answer.status_code != 200:
        return f"{answer.status_code} {one_line(answer.text, 80)}"
    try:
        count = api.count(answer.json())
    except (ValueError, LookupError, TypeError):
        return "an answer of another shape"
    return None if count == len(_PROBE) else f"{count} results for {len(_PROBE)} texts"
