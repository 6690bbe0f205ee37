"""The ASGI host of bei.api: reads a body within bounds, gives up when the client does, writes the reply."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bei import api, metrics
from bei.api import Call, Reply
from bei.errors import ClientGone, NotReady, TooLarge
from bei.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_DRAIN_SECONDS = 10.0


def asgi(service: Service) -> Application:
    """The application; it speaks `http` and nothing else."""

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        call = _head(scope)
        try:
            call = await _with_body(call, receive, service.settings.payload_limit)
            reply = await _answer_while_connected(service, call, receive)
        except TooLarge as error:
            reply = await api.refuse(call, error)
            if scope["http_version"] != "2":  # the rest of the body may still come
                reply = Reply(reply.body, reply.status, {**reply.headers, "connection": "close"})
        except asyncio.CancelledError:
            if scope["http_version"] == "2":  # the connection may be gone, and nobody left to take an answer
                raise
            metrics.observe_cancelled("drain")
            reply = await api.refuse(call, NotReady("the server stopped before the answer"))
        except ClientGone as error:
            api.lost(call, error)
            return
        await _write(reply, scope, send)

    return application


def _head(scope: Message) -> Call:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return Call(scope["method"], scope["path"], headers=headers)


async def _with_body(call: Call, receive: Receive, limit: int) -> Call:
    """Raises TooLarge once the client has stopped sending, or has sent as much again; ClientGone when it left."""
    too_large = TooLarge(f"the body is larger than {limit} bytes")
    stated = call.headers.get("content-length", "0")
    over = stated.isdigit() and int(stated) > limit
    if over and "expect" in call.headers:
        raise too_large  # it waits for our word before it sends
    chunks, size, give_up = [], 0, time.monotonic() + _DRAIN_SECONDS
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client left while it was sending")
        chunk = message.get("body", b"")
        size += len(chunk)
        over = over or size > limit
        if over:
            # A client that is not read never reads our answer: take what it sends, within reason.
            chunks.clear()
            if size > 2 * limit or time.monotonic() > give_up:
                raise too_large
        else:
            chunks.append(chunk)
        if not message.get("more_body"):
            break
    if over:
        raise too_large
    return Call(call.method, call.path, b"".join(chunks), call.headers, call.arrived)


async def _answer_while_connected(service: Service, call: Call, receive: Receive) -> Reply:
    """The reply, or ClientGone as soon as the connection closes: nothing is computed for nobody."""
    answering = asyncio.ensure_future(api.answer(service, call))
    watching = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        raise ClientGone("the client left before the answer")
    finally:
        answering.cancel()
        watching.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _write(reply: Reply, scope: Message, send: Send) -> None:
    body = b"" if scope["method"] == "HEAD" else reply.body
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers.items()]
    headers.append((b"content-length", b"%d" % len(reply.body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
