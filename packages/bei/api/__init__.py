"""Every route, whoever hosts it: a Call in, a Reply out. No web framework, so every host answers the same bytes."""

import asyncio
import logging
from functools import cache
from typing import Any

import orjson
from pydantic import TypeAdapter

from bei import logs, tracing
from bei.api import cohere, cors, infinity, openai, openapi, operations, shared, tei, vllm
from bei.api.bodies import read
from bei.api.call import Call, authorize, check_content_type
from bei.api.fields import Body
from bei.api.observation import Observation
from bei.api.reply import Reply, Result, finish, render, render_error
from bei.api.routes import Route
from bei.errors import ClientGone, Error, MethodNotAllowed, NotFound, one_line
from bei.serving.service import Service

__all__ = ["ROUTES", "Call", "Reply", "Route", "admit", "answer", "lost", "refuse"]

log = logging.getLogger("bei")


@cache
def _openapi() -> bytes:
    return orjson.dumps(openapi.document(ROUTES))


async def _document(service: Service, body: Any, call: Call) -> Reply:
    return Reply(_openapi(), headers={"content-type": "application/json"})


_OPENAPI_ROUTE = Route("/openapi.json", _document, "This document", method="GET")
_DIALECTS = (openai, tei, cohere, vllm, infinity, shared, operations)
ROUTES = (*(route for dialect in _DIALECTS for route in dialect.ROUTES), _OPENAPI_ROUTE)
_BY_PATH: dict[str, dict[str, Route]] = {
    path: {route.method: route for route in ROUTES if route.path == path} for path in {route.path for route in ROUTES}
}


async def answer(service: Service, call: Call, route: Route | None = None) -> Reply:
    """The reply to any call; a fault of the client or the engine is a reply, too, and never an exception. `route` is
    the one that `admit` gave to a host that asked before it read the body."""
    with service.in_flight.request(), Observation(service, call, _label(call)) as seen:
        try:
            reply = cors.preflight(call, service.settings) or await _reply(service, call, route, seen)
        except Error as error:
            reply = render_error(error, call.path)
        except Exception:
            log.exception("unexpected fault in %s %s", call.method, call.path)
            reply = render_error(Error("internal error; the server's log has the details"), call.path)
        return seen.replied(cors.shared(await finish(reply, call), call, service.settings))


async def refuse(service: Service, call: Call, error: Error) -> Reply:
    """The reply to a call that its host cannot hand over, or cannot wait for."""
    with Observation(service, call, _label(call)) as seen:
        reply = await finish(render_error(error, call.path), call)
        return seen.replied(cors.shared(reply, call, service.settings))


def lost(service: Service, call: Call, error: ClientGone) -> None:
    """Notes that a client left: there is nobody to reply to."""
    logs.about(call.request_id, tracing.trace_id(call.headers))
    log.info("%d %s %s: %s", error.status, call.method, call.path, error)
    service.metrics.observe_reply(_label(call), error.status)
    service.metrics.observe_cancelled("disconnect")


def admit(service: Service, call: Call) -> Route:
    """The route of a call, by its head alone. Raises NotFound, MethodNotAllowed, Unauthorized or
    UnsupportedMediaType."""
    route = _find(call)
    if service.settings.protect_all or not route.public:
        authorize(call, service.settings)
    if route.adapter is not None:
        check_content_type(call)
    return route


async def _reply(service: Service, call: Call, route: Route | None, seen: Observation) -> Reply:
    route = route or admit(service, call)
    if route.stands_for is not None:
        route = route.stands_for(service)
    if route.adapter is not None:
        return await _compute(route, route.adapter, service, call, seen)
    result = await route.handler(service, None, call)
    return result if isinstance(result, Reply) else await render(result, call, "")


async def _compute(route: Route, adapter: TypeAdapter[Body], service: Service, call: Call, seen: Observation) -> Reply:
    body = None
    try:
        body = await read(adapter, call.body, service.settings, service.in_flight.admit)
        seen.computing()
        result = await _handle(route, service, body, call)
    except (Exception, asyncio.CancelledError) as fault:
        seen.failed(fault, body, scored=service.has_labels)
        raise
    if isinstance(result, Reply):
        return result
    if result.usage is not None:
        seen.answered(result.texts, result.usage, scored=service.has_labels)
    return await render(result, call, _device(service))


async def _handle(route: Route, service: Service, body: Body, call: Call) -> Result | Reply:
    """The answer to a body, or an error in its words."""
    try:
        return await route.handler(service, body, call)
    except Error as error:
        raise body.in_its_words(error) from None


def _find(call: Call) -> Route:
    methods = _BY_PATH.get(call.path)
    if methods is None:
        raise NotFound(f"no such path: {one_line(call.path)}; GET /docs lists them")
    route = methods.get("GET" if call.method == "HEAD" else call.method)
    if route is None:
        raise MethodNotAllowed(call.method, call.path, allowed=tuple(methods))
    return route


def _device(service: Service) -> str:
    """TEI says gpu+optimized whatever it runs on; we say so of GPUs."""
    return "cpu" if service.engine.facts.device.startswith("cpu") else "gpu+optimized"


def _label(call: Call) -> str:
    """The path under which a call is counted: what clients make up is `other`."""
    return call.path if call.path in _BY_PATH else "other"
