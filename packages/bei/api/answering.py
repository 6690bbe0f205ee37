"""A call, from its route to its reply."""

import asyncio
import logging

from pydantic import BaseModel, StrictStr, TypeAdapter

from bei import logs, tracing
from bei.api import base_urls, cors
from bei.api.bodies import read
from bei.api.call import Call, authorize, check_content_type, deadline
from bei.api.fields import Body
from bei.api.observation import Observation
from bei.api.reply import Reply, Result, finish, render, render_error
from bei.api.routes import Route
from bei.api.table import TABLE
from bei.errors import ClientGone, Ended, Error, ModelNotFound
from bei.serving.model import ServedModel
from bei.serving.registry import Registry
from bei.serving.service import Service

log = logging.getLogger("bei")


class _Naming(BaseModel):
    """The part of any body that names a model."""

    model: StrictStr | None = None


_NAMING = TypeAdapter(_Naming)


async def answer(registry: Registry, call: Call, route: Route | None = None) -> Reply:
    """The reply to any call; an error of the client or the engine is a reply, too. `route` is the result of `admit`,
    for a host that called it before it read the body. Raises ClientGone, if the call's stream does."""
    if route is None:
        base_urls.enter(registry, call)
    with registry.in_flight.request(), Observation(registry, call, TABLE.label(call.path)) as seen:
        try:
            reply = cors.preflight(call, registry.settings) or await _reply(registry, call, route, seen)
        except ClientGone:
            raise
        except Error as error:
            reply = render_error(error, TABLE.errors(call.path))
        except Exception:
            log.exception("unexpected fault in %s %s", call.method, call.path)
            reply = render_error(Error("internal error; the server's log has the details"), TABLE.errors(call.path))
        return seen.replied(cors.shared(await finish(reply, call, registry.writers), call, registry.settings))


async def refuse(registry: Registry, call: Call, error: Error) -> Reply:
    """The reply to a call that its host cannot pass on, or cannot wait for."""
    with Observation(registry, call, TABLE.label(call.path)) as seen:
        reply = await finish(render_error(error, TABLE.errors(call.path)), call, registry.writers)
        return seen.replied(cors.shared(reply, call, registry.settings))


def error_reply(error: Error, path: str) -> Reply:
    """The reply with an error in the shape for the clients of a path, for a host without a call."""
    return render_error(error, TABLE.errors(path))


def lost(registry: Registry, call: Call, error: ClientGone) -> None:
    """Notes that a client left; there is no reply."""
    logs.about(call.request_id, tracing.trace_id(call.headers))
    log.info("%d %s %s: %s", error.status, call.method, call.path, error)
    registry.metrics.observe_reply(TABLE.label(call.path), error.status)
    registry.metrics.observe_cancelled("disconnect")


def admit(registry: Registry, call: Call) -> Route:
    """The route of a call, from its head alone. Raises NotFound, MethodNotAllowed, Unauthorized or
    UnsupportedMediaType."""
    base_urls.enter(registry, call)
    route = TABLE.route(call)
    if call.parameters and call.base is None:
        call.base = call.parameters.get("model")
    if registry.settings.protect_all or not route.public:
        authorize(call, registry.settings)
    if route.adapter is not None:
        check_content_type(call)
    return route


async def _reply(registry: Registry, call: Call, route: Route | None, seen: Observation) -> Reply:
    route = route or admit(registry, call)
    if route.stands_for is not None:
        route = route.stands_for(await _named(registry, call))
    body = None
    if route.adapter is not None:
        if not route.of_server:
            return await _compute(route, route.adapter, registry, call, seen)
        body = await read(route.adapter, call.body, registry.settings, registry.readers, unknown=call.unknown)
    result = await route.handler(registry, body, call)
    return result if isinstance(result, Reply) else await render(result, call, "", registry.writers)


async def _compute(
    route: Route, adapter: TypeAdapter[Body], registry: Registry, call: Call, seen: Observation
) -> Reply:
    body, service = None, registry.services[0]
    try:
        admit = registry.in_flight.admit
        body = await read(adapter, call.body, registry.settings, registry.readers, admit, call.unknown)
        name = call.base or body.model
        service = registry.resolve(route.ability, name)
        seen.computing(service, name)
        model = service.lease()
        if model is None:
            service, model = await registry.loaded(route.ability, name, deadline(call))
        try:
            result = await _handle(route, model, body, call)
        except Ended:
            raise service.ended() from None
        finally:
            service.leases.give_back()
    except (Exception, asyncio.CancelledError) as fault:
        seen.failed(None if isinstance(fault, ModelNotFound) else service, fault, body)
        raise
    if isinstance(result, Reply):
        return result
    if result.usage is not None:
        seen.answered(model, result.texts, result.usage)
    return await render(result, call, _device(model), registry.writers)


async def _named(registry: Registry, call: Call) -> Service:
    """The model that a base URL or a body names, for a route that depends on the model."""
    if len(registry.services) == 1:
        return registry.services[0]
    if call.base is not None:
        return registry.resolve(name=call.base)
    body = await read(_NAMING, call.body, registry.settings, registry.readers)
    return registry.resolve(name=body.model)


async def _handle(route: Route, model: ServedModel, body: Body, call: Call) -> Result | Reply:
    """The answer to a body; errors carry the field names of the body."""
    try:
        return await route.handler(model, body, call)
    except Error as error:
        raise body.in_its_words(error) from None


def _device(model: ServedModel) -> str:
    """TEI says gpu+optimized on any device; we say so for GPUs only."""
    return "cpu" if model.engine.facts.device.startswith("cpu") else "gpu+optimized"
