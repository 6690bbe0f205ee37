"""Starts a server from its settings: the socket, the engine, and the banner with its address."""

import logging
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from bei.checkpoint.load import Checkpoint
from bei.engines.interpreters import Interpreters
from bei.errors import address, printable
from bei.jobs.store import Store
from bei.metrics import Metrics
from bei.server import hangups, hosting, listen, workers
from bei.serving import renewal
from bei.serving.model import ServedModel
from bei.serving.registry import Registry
from bei.serving.service import Service
from bei.settings import ServerSettings, Settings

log = logging.getLogger("bei")


def serve(
    models: Sequence[Settings],
    read: Callable[[], Sequence[Settings]],
    interpreters: Interpreters,
    show: Callable[[Metrics], None] = lambda metrics: None,
) -> None:
    """Serves the models until a signal; then the process ends. The settings of the server are those of the first. At
    SIGHUP `read` reads the settings again. `show` may serve the metrics elsewhere, too."""
    settings = models[0]
    with hosting.tracer_of(settings) as tracer, hosting.metrics_of(settings) as metrics:
        show(metrics)
        listen.tls(settings.tls_cert, settings.tls_key)  # refused before anything is loaded
        Store.of(settings)  # so is this
        listener = _listener(settings)
        try:
            registry = Registry.of(models, metrics, tracer, interpreters=interpreters)
            hangups.handle(lambda: renewal.renew(registry, read))

            def ready() -> None:
                _announce(registry, listener)
                registry.keeper.started.set()

            status = workers.serve(registry, listener, ready)
        finally:
            listen.remove_path(listener)
    sys.exit(status)


def _listener(settings: ServerSettings) -> socket.socket:
    if settings.uds_path is not None:
        return listen.bind_path(settings.uds_path)
    return listen.bind(settings.host, settings.port)


def _announce(registry: Registry, listener: socket.socket) -> None:
    settings, place = registry.settings, _place(registry.settings, listener)
    if settings.json_output:
        log.info("%s is served on %s", ", ".join(registry.names), place)
    else:
        click.echo("".join(_banner(service, place) for service in registry.services))


def _place(settings: ServerSettings, listener: socket.socket) -> str:
    if settings.uds_path is not None:
        return f"unix:{settings.uds_path}"
    host, port = listener.getsockname()[:2]
    return f"{'https' if settings.tls_cert else 'http'}://{address(host, port)}"


def outputs(checkpoint: Checkpoint) -> dict[str, Any]:
    """The form of the model's answers, for people."""
    match checkpoint.task:
        case "entities" if checkpoint.gliner is not None:
            return {"labels": ["the labels of a request"], "scores": checkpoint.scoring}
        case "reranker" | "classifier" | "entities":
            return {"labels": list(checkpoint.labels), "scores": checkpoint.scoring}
        case "list_reranker":
            return {"scores": "cosine"}
        case "multi_vector":
            return {"dimensions": checkpoint.width}
        case _:
            return {"pooling": list(checkpoint.spec.pooling.modes), "dimensions": checkpoint.width}


def engine_in_words(model: ServedModel) -> str:
    facts = model.engine.facts
    return f"{facts.name}, {facts.computes_in} on {facts.device} ({facts.reason})"


_SHOWN = 6
_RERANK = ("/rerank", '{"query": "What is Deep Learning?", "texts": ["Deep Learning is...", "Berlin is..."]}')
_TRY: dict[str, tuple[str, str]] = {
    "embedding": ("/v1/embeddings", '{"input": "What is Deep Learning?", "dimensions": 4}'),
    "reranker": _RERANK,
    "list_reranker": _RERANK,
    "classifier": ("/predict", '{"inputs": "Profits rose by a fifth."}'),
    "entities": ("/predict_tokens", '{"inputs": ["My name is Maria Schmidt."], "aggregation_strategy": "simple"}'),
    "sparse": ("/embed_sparse", '{"inputs": "What is Deep Learning?"}'),
    "multi_vector": (
        "/rerank",
        '{"query": "What is Deep Learning?", "texts": ["Deep Learning is...", "Berlin is..."]}',
    ),
}
_TRY_NAMED = ("/predict_tokens", '{"inputs": ["My name is Maria Schmidt."], "labels": ["person", "city"]}')


def _banner(service: Service, place: str) -> str:
    settings, checkpoint, model = service.settings, service.known(), service.loaded
    key = ' -H "Authorization: Bearer $KEY"' if settings.api_key else ""
    path, body = _TRY[checkpoint.task] if checkpoint.gliner is None else _TRY_NAMED
    scheme = "https" if settings.tls_cert else "http"
    if settings.uds_path is not None:
        base = f"--unix-socket {settings.uds_path} {scheme}://localhost"
    else:
        base = place.removeprefix("http://")
    routes = f"{place}/docs" if settings.uds_path is None else "GET /docs"
    return f"""
  {printable(settings.served_model_name)}
    engine    {"is started by the first request" if model is None else printable(engine_in_words(model))}
    task      {checkpoint.task}: {printable(_in_words(checkpoint))}
    limits    {checkpoint.max_tokens} tokens per text, {settings.max_client_batch_size} texts per request
    listening {place} (routes: {routes})

  Try it:
    curl -s{key} {base}{path} -d '{body}'
"""


def _in_words(checkpoint: Checkpoint) -> str:
    found = outputs(checkpoint)
    if "labels" in found:
        more = f" and {len(found['labels']) - _SHOWN} more" if len(found["labels"]) > _SHOWN else ""
        return f"{found['scores']} of {', '.join(found['labels'][:_SHOWN])}{more}"
    if "dimensions" not in found:
        return f"{found['scores']} of each text, beside the others of its request"
    pooling = f", {'+'.join(found['pooling'])} pooling" if "pooling" in found else " a token"
    return f"{found['dimensions']} numbers{pooling}"
