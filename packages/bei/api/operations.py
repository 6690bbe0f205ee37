"""Routes for operators: health, the served model, and metrics."""

import asyncio
from typing import Any

from bei import __version__
from bei.api.call import Call
from bei.api.error_shapes import OPENAI
from bei.api.reply import Reply, Result
from bei.api.routes import Dialect, Route
from bei.architectures.spec import PoolingMode
from bei.checkpoint.load import Checkpoint
from bei.engines.cpus import available_cpus
from bei.metrics import CONTENT_TYPE
from bei.serving import abilities
from bei.serving.abilities import NEEDS
from bei.serving.registry import Registry
from bei.settings.devices import names_of

_TEI_POOLING: dict[PoolingMode, str] = {"first": "cls", "last": "last_token"}
_DTYPES: dict[str, str] = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "int8": "int8",
    "int4": "int4",
    **dict.fromkeys(("fp8", "fp8_kv", "fp8_mlp_only"), "float8_e4m3fn"),
    **dict.fromkeys(("fp4", "fp4_kv", "fp4_mlp_only"), "float4_e2m1fn"),
}


async def live(registry: Registry, body: Any, call: Call) -> Reply:
    """The process answers."""
    return Reply(b"")


async def ready(registry: Registry, body: Any, call: Call) -> Reply:
    await registry.check(call.model)
    return Reply(b"")


async def info(registry: Registry, body: Any, call: Call) -> Result:
    """The engine's facts are null while the model is not loaded."""
    service = registry.resolve(name=call.model)
    settings, checkpoint, model = service.settings, service.known(), service.loaded
    facts = None if model is None else model.engine.facts
    return Result(
        {
            "model_id": settings.public_repo,
            "model_sha": checkpoint.revision,
            "model_dtype": None if facts is None else _DTYPES[facts.computes_in],
            "served_model_name": settings.served_model_name,
            "model_type": _model_type(checkpoint),
            "task": checkpoint.task,
            "abilities": [ability for ability in NEEDS if abilities.has(checkpoint, ability)],
            "default_route": service.route,
            "pooling": list(checkpoint.spec.pooling.modes),
            "state": service.state,
            "engine": None if facts is None else facts.name,
            "device": None if facts is None else facts.device,
            "devices": [] if facts is None else names_of(facts.devices),
            "max_concurrent_requests": settings.max_concurrent_requests,
            "max_input_length": checkpoint.max_tokens,
            "max_batch_tokens": settings.max_num_tokens,
            "max_batch_requests": settings.max_batch_size,
            "max_client_batch_size": settings.max_client_batch_size,
            "auto_truncate": settings.auto_truncate,
            "tokenization_workers": settings.tokenization_workers or available_cpus(),
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


def _model_type(checkpoint: Checkpoint) -> dict[str, Any]:
    """The task in TEI's words, which are all that its clients know: a tagger is a classifier, and a pooling that TEI
    lacks is a mean."""
    labels = {str(i): label for i, label in enumerate(checkpoint.labels)}
    named = {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}
    match checkpoint.task:
        case "reranker" | "list_reranker":
            return {"reranker": named}
        case "classifier" | "entities":
            return {"classifier": named}
        case "sparse":
            return {"embedding": {"pooling": "splade"}}
        case _:
            modes = checkpoint.spec.pooling.modes
            return {"embedding": {"pooling": _TEI_POOLING.get(modes[0], "mean") if len(modes) == 1 else "mean"}}


async def prometheus(registry: Registry, body: Any, call: Call) -> Reply:
    text = await asyncio.shield(
        asyncio.wrap_future(registry.metrics.shared_exposition())
    )  # others may wait for the same rendering
    return Reply(text, headers={"content-type": CONTENT_TYPE})


_LIVE = Route("/health/live", live, "200 while the process answers", method="GET", public=True)
_READY = Route("/health", ready, "200 while requests are answered, else 503", method="GET", public=True)

DIALECT = Dialect(
    "operations",
    (
        *(_LIVE, _LIVE.at("/v1/health/live", OPENAI)),
        *(_READY.at(path) for path in ("/health", "/health/ready", "/ping")),
        _READY.at("/v1/health/ready", OPENAI),
        Route(
            "/info",
            info,
            "The first model, or ?model=NAME; its engine and limits",
            method="GET",
            response=dict[str, Any],
        ),
        Route("/metrics", prometheus, "Prometheus metrics", method="GET", public=True),
    ),
)
