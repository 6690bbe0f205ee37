"""Every route, whoever hosts it: a Call in, a Reply out. No web framework, so every host answers the same bytes."""

import logging
from functools import cache
from typing import Any

import orjson

from bei import metrics
from bei.api import cohere, infinity, openai, openapi, operations, shared, tei, vllm
from bei.api.bodies import parse
from bei.api.call import Call, authorize, check_content_type
from bei.api.reply import Reply, finish, render, render_error
from bei.api.routes import Route
from bei.errors import Error, Expired, MethodNotAllowed, NotFound, Overloaded, TooLarge, Untokenizable, WrongTask
from bei.service import Service, Usage

__all__ = ["ROUTES", "Call", "Reply", "admit", "answer"]

log = logging.getLogger("bei")


@cache
def _openapi() -> bytes:
    return orjson.dumps(openapi.document(ROUTES))


async def _document(service: Service, body: Any, call: Call) -> Reply:
    return Reply(_openapi(), headers={"content-type": "application/json"})


_OPENAPI_ROUTE = Route("/openapi.json", _document, "This document", method="GET")
_DIALECTS = (openai, tei, cohere, vllm, infinity, shared, operations)
ROUTES = (*(route for dialect in _DIALECTS for route in dialect.ROUTES), _OPENAPI_ROUTE)
_BY_PATH: dict[str, dict[str, Route]] = {}
for _route in ROUTES:
    _BY_PATH.setdefault(_route.path, {})[_route.method] = _route


async def answer(service: Service, call: Call) -> Reply:
    """The reply to any call; a fault of the client or the engine is a reply, too, and never an exception."""
    try:
        reply = await _route(service, call)
    except Error as error:
        metrics.request_failure.labels(_failure(error)).inc()
        reply = render_error(error, call.path)
    except Exception:
        log.exception("unexpected fault in %s %s", call.method, call.path)
        reply = render_error(Error("internal error; the server's log has the details"), call.path)
    return await finish(reply, call)


def admit(service: Service, call: Call) -> Route:
    """The route of a call, by its head alone. Raises NotFound, MethodNotAllowed, Unauthorized or
    UnsupportedMediaType."""
    route = _find(call)
    if service.settings.protect_all or not route.public:
        authorize(call, service.settings)
    if route.adapter is not None:
        check_content_type(call)
    return route


async def _route(service: Service, call: Call) -> Reply:
    route = admit(service, call)
    if route.stands_for is not None:
        route = route.stands_for(service)
    body = None if route.adapter is None else parse(route.adapter, call.body)
    result = await route.handler(service, body, call)
    if isinstance(result, Reply):
        return result
    if result.usage is not None:
        _observe(result.texts, result.usage, service)
    return render(result, call, _device(service))


def _find(call: Call) -> Route:
    methods = _BY_PATH.get(call.path)
    if methods is None:
        raise NotFound(f"no such path: {call.path}; GET /docs lists them")
    route = methods.get("GET" if call.method == "HEAD" else call.method)
    if route is None:
        raise MethodNotAllowed(call.method, call.path, allowed=tuple(methods))
    return route


def _device(service: Service) -> str:
    """TEI says gpu+optimized whatever it runs on; we say so of GPUs."""
    return "cpu" if service.engine.device.startswith("cpu") else "gpu+optimized"


def _observe(texts: int, usage: Usage, service: Service) -> None:
    metrics.observe_texts(texts, scored=bool(service.checkpoint.labels))
    metrics.request_duration.observe(usage.total)
    metrics.tokenization_duration.observe(usage.tokenization)
    metrics.queue_duration.observe(usage.queue)
    metrics.inference_duration.observe(usage.inference)


def _failure(error: Error) -> str:
    """TEI's label of a failed request."""
    match error:
        case TooLarge():
            return "batch_size"
        case Overloaded():
            return "overloaded"
        case Untokenizable():
            return "tokenization"
        case WrongTask():
            return "model_type"
        case Expired():
            return "dropped"
        case _:
            return "validation" if error.kind in ("Validation", "Empty") else "inference"
