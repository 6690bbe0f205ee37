"""The calls of Java's HTTP clients (Calls.java), with the bodies that Spring AI and langchain4j send, and some more."""

import base64
import json
from collections.abc import Callable
from typing import Any, NamedTuple

JARS = ("httpclient5", "httpcore5", "httpcore5-h2", "slf4j-api", "slf4j-nop")
CLIENTS = (
    "java.net.http",
    "java.net.http, chunked",
    "java.net.http, HTTP/1.1",
    "Apache",
    "Apache, chunked",
    "Apache, asynchronous",
    "Apache, HTTP/2",
)


class Request(NamedTuple):
    """`read` makes a result of the answer, as those of calls.py."""

    name: str
    server: str
    path: str
    body: Callable[[dict[str, Any]], dict[str, Any]]
    read: Callable[[Any], dict[str, Any]]


REQUESTS = (
    Request(
        "Spring AI, OpenAI",
        "embedding",
        "/v1/embeddings",
        lambda given: {"input": given["texts"], "model": "any", "encoding_format": "float"},
        lambda answer: {"vectors": [item["embedding"] for item in answer["data"]]},
    ),
    Request(
        "Spring AI, Ollama",
        "embedding",
        "/api/embed",
        lambda given: {"model": "any", "input": given["texts"], "options": {"num_ctx": 2048}, "truncate": True},
        lambda answer: {"vectors": answer["embeddings"]},
    ),
    Request(
        "langchain4j, Cohere",
        "reranker",
        "/v1/rerank",
        lambda given: {"model": "any", "query": given["query"], "documents": given["documents"]},
        lambda answer: {"ranks": [[item["index"], item["relevance_score"]] for item in answer["results"]]},
    ),
)
CALLS = {f"{client}: {request.name}": (client, request) for client in CLIENTS for request in REQUESTS}


def lines(given: dict[str, Any]) -> str:
    """The standard input of Calls.java."""

    def line(name: str, client: str, request: Request) -> str:
        body = base64.b64encode(json.dumps(request.body(given)).encode()).decode()
        return "\t".join([name, client, given["urls"][request.server] + request.path, body])

    return "\n".join(line(name, client, request) for name, (client, request) in CALLS.items())


def results(output: str) -> dict[str, dict[str, Any]]:
    """The results by name of the call, from the standard output of Calls.java."""
    found = {}
    for line in output.splitlines():
        name, status, body = line.split("\t")
        text = base64.b64decode(body).decode()
        found[name] = CALLS[name][1].read(json.loads(text)) if status == "200" else {"failed": f"{status} {text}"}
    return found
