"""The ASGI host of bei.api: reads a body, stops when the client leaves, and writes the reply."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from bei import api
from bei.api import Call, FileContent, Reply, Route
from bei.errors import (
    ClientGone,
    Error,
    Malformed,
    Misdirected,
    NotReady,
    Overloaded,
    RequestHeadTooLarge,
    TooLarge,
    TooSlow,
)
from bei.server import connections
from bei.server.body_reader import BodyReader, Message, Receive
from bei.server.hosts import Hosts
from bei.serving.registry import Registry

Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

log = logging.getLogger("bei")

_BUFFERED = 1 << 16  # bytes of an answer that a connection takes at once


def asgi(registry: Registry, hosts: Hosts | None = None) -> Application:
    """The ASGI application; it handles the scope `http` only. Without `hosts` a request may name any host."""
    hosts = hosts or Hosts()
    body_reader = BodyReader(registry.settings.payload_limit, registry.in_flight)

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        call = _call_of(scope)
        with registry.in_flight.request():
            try:
                reply = await _answer(registry, hosts, body_reader, call, scope, receive)
            except ClientGone as error:
                return api.lost(registry, call, error)
            await _write(reply if not registry.is_draining else _last(reply, scope), scope, send)

    return application


async def _answer(
    registry: Registry, hosts: Hosts, body_reader: BodyReader, call: Call, scope: Message, receive: Receive
) -> Reply:
    """Raises ClientGone when nobody waits for the reply."""
    try:
        hosts.check(call.headers.get("host"), scope["http_version"])
        route = _admitted(registry, call, scope)
        if route is not None and route.form is not None:
            return await _answer_form(registry, body_reader, call, route, scope, receive)
        wanted = route is not None and route.adapter is not None
        if not wanted and "expect" in call.headers:  # the client waits for our answer before it sends
            return _last(await api.answer(registry, call, route), scope)
        try:
            call.body = await body_reader.read(call, receive, wanted=wanted)
        except TooLarge:
            if wanted:
                raise
            return _last(await api.answer(registry, call, route), scope)
        with _WhileConnected(receive):
            return await api.answer(registry, call, route)
    except (RequestHeadTooLarge, Malformed, Misdirected, TooLarge, TooSlow, Overloaded) as error:
        return _last(await api.refuse(registry, call, error), scope)
    except asyncio.CancelledError:
        registry.metrics.observe_cancelled("drain")
        return _last(await api.refuse(registry, call, NotReady("the server stopped before the answer")), scope)


async def _answer_form(
    registry: Registry, body_reader: BodyReader, call: Call, route: Route, scope: Message, receive: Receive
) -> Reply:
    """A form is read while it comes. The rest of one that is refused is read, too, for a while: a client that sends
    without being read never reads our answer. Raises ClientGone."""
    has_begun = has_ended = False

    async def stream() -> AsyncIterator[bytes]:
        nonlocal has_begun, has_ended
        has_begun = True
        async for part in body_reader.stream(call, receive):
            yield part
        has_ended = True

    call.stream = stream()
    reply = await api.answer(registry, call, route)
    if has_ended:
        return reply
    if has_begun or "expect" not in call.headers:
        await body_reader.drain(receive)
    return _last(reply, scope)


def _last(reply: Reply, scope: Message) -> Reply:
    """The reply, as the last one on a connection of HTTP/1.1: the rest of the body may still come, or the server
    ends."""
    if scope["http_version"] == "2":
        return reply
    return reply.with_headers({"connection": "close"})


def _call_of(scope: Message) -> Call:
    """A Call of a scope. Repeated headers become one (RFC 9110, §5.2), so of two keys neither is accepted."""
    headers: dict[str, str] = {}
    for encoded, value in scope["headers"]:
        name, text = encoded.decode("latin-1").lower(), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    query = scope.get("query_string", b"").decode("latin-1")
    client, root_path = scope.get("client"), scope.get("root_path", "")
    return Call(
        *(scope["method"], scope["path"]),
        headers=headers,
        query=query,
        client=client[0] if client else None,
        root_path=root_path,
    )


def _admitted(registry: Registry, call: Call, scope: Message) -> Route | None:
    """The call's route; None where the request head alone is refused. The body is kept only for a route that reads one.
    Raises RequestHeadTooLarge."""
    if len(scope["headers"]) > connections.MAX_HEADERS:
        raise RequestHeadTooLarge(f"the request has more than {connections.MAX_HEADERS} headers")
    try:
        return api.admit(registry, call)
    except Error:
        return None


class _WhileConnected:
    """Ends a call's work by ClientGone once the connection closes, so that nothing is computed for nobody. Watching
    costs as much as tokenizing a brief text; most calls are answered before the watch begins."""

    def __init__(self, receive: Receive):
        self._receive, self._gone = receive, False
        self._watching: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        answering = asyncio.current_task()
        if answering is None:
            raise RuntimeError("calls are answered by tasks")
        self._answering = answering
        self._begins = answering.get_loop().call_later(connections.WATCH_AFTER, self._begin)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._begins.cancel()
        if self._watching is not None:
            self._watching.cancel()
        if kind is asyncio.CancelledError and self._gone and not self._answering.uncancel():
            raise ClientGone("the client left before the answer") from None

    def _begin(self) -> None:
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._answering.cancel()


async def _write(reply: Reply, scope: Message, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers.items()]
    if reply.status != 204:  # 204 has neither a body nor a length
        headers.append((b"content-length", b"%d" % reply.size))
    start = {"type": "http.response.start", "status": reply.status, "headers": headers}
    if scope["method"] != "HEAD" and reply.size > _BUFFERED:
        return await _write_parts(reply, start, scope, send)
    await send(start)
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})


async def _read(reply: Reply) -> AsyncIterator[bytes]:
    """The parts of a reply; those of a file are read by a thread."""
    parts = iter(reply.parts)
    if not isinstance(reply.content, FileContent):
        for part in parts:
            yield part
        return
    while part := await asyncio.to_thread(next, parts, b""):
        yield part


async def _write_parts(reply: Reply, start: Message, scope: Message, send: Send) -> None:
    """Sends each part when the one before has gone. A large answer counts as in flight until it has been read, for a
    bounded time; a file does not."""
    seconds = connections.READING_SECONDS + reply.size / connections.READING_RATE
    if not isinstance(reply.content, FileContent):
        seconds = min(seconds, connections.MOST_READING_SECONDS)
    try:
        async with asyncio.timeout(seconds):
            await send(start)
            async for part in _read(reply):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body"})
    except TimeoutError:
        log.info("499 %s %s: its client did not read the answer in %d s", scope["method"], scope["path"], seconds)
        scope.get("extensions", {}).get(connections.ABORT, lambda: None)()
        await asyncio.sleep(0)  # lets the connection notice
