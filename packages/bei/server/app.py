"""The ASGI host of bei.api: reads a body, gives up when the client does, writes the reply."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from bei import api, metrics
from bei.api import Call, Reply
from bei.errors import ClientGone, Error, HeadTooLarge, NotReady, Overloaded, TooLarge, TooSlow
from bei.server.bodies import Bodies, Message, Receive
from bei.service import Service

Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_HEADERS = 128


def asgi(service: Service) -> Application:
    """The application; it speaks `http` and nothing else."""
    bodies = Bodies(service.settings.payload_limit, service.settings.max_bytes_in_flight)

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        call = _head(scope)
        try:
            wanted = _is_wanted(service, call, scope)
            if not wanted and "expect" in call.headers:  # it waits for our word before it sends
                reply = _last(await api.answer(service, call), scope)
            else:
                call.body = await bodies.read(call, receive, wanted=wanted)
                try:
                    async with _connected(receive):
                        reply = await api.answer(service, call)
                finally:
                    bodies.free(call.body)
        except (HeadTooLarge, TooLarge, TooSlow, Overloaded) as error:
            reply = _last(await api.refuse(service, call, error), scope)
        except asyncio.CancelledError:
            metrics.observe_cancelled("drain")
            reply = _last(await api.refuse(service, call, NotReady("the server stopped before the answer")), scope)
        except ClientGone as error:
            api.lost(call, error)
            return
        await _write(reply if service.state != "draining" else _last(reply, scope), scope, send)

    return application


def _last(reply: Reply, scope: Message) -> Reply:
    """The last reply on a connection of HTTP/1.1: the rest of the call's body may still come, or the server ends."""
    if scope["http_version"] == "2":
        return reply
    return Reply(reply.body, reply.status, {**reply.headers, "connection": "close"})


def _head(scope: Message) -> Call:
    """With repeated headers as one (RFC 9110, §5.2): of two keys neither is the first, and none is accepted."""
    headers: dict[str, str] = {}
    for encoded, value in scope["headers"]:
        name, text = encoded.decode("latin-1").lower(), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return Call(scope["method"], scope["path"], headers=headers)


def _is_wanted(service: Service, call: Call, scope: Message) -> bool:
    """Whether a body is worth keeping: not where the head alone is refused. Raises HeadTooLarge."""
    if len(scope["headers"]) > MAX_HEADERS:
        raise HeadTooLarge(f"the request has more than {MAX_HEADERS} headers")
    try:
        api.admit(service, call)
    except Error:
        return False
    return True


@asynccontextmanager
async def _connected(receive: Receive) -> AsyncIterator[None]:
    """Ends what is done within, by ClientGone, as soon as the connection closes: nothing is computed for nobody."""
    answering, gone = asyncio.current_task(), False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        answering.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and not answering.uncancel():
            raise ClientGone("the client left before the answer") from None
        raise
    finally:
        watching.cancel()


async def _write(reply: Reply, scope: Message, send: Send) -> None:
    body = b"" if scope["method"] == "HEAD" else reply.body
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers.items()]
    if reply.status != 204:  # which has neither a body nor its length
        headers.append((b"content-length", b"%d" % len(reply.body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
