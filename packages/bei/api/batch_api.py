"""OpenAI's Batch API: files of requests, and the batches that answer them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, StrictInt, StrictStr, StringConstraints
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from bei.api import cors
from bei.api.call import Call
from bei.api.error_shapes import OPENAI
from bei.api.fields import Part
from bei.api.reply import FileContent, Reply, Result
from bei.api.routes import Dialect, Route
from bei.errors import Forbidden, Invalid, NotFound, short
from bei.jobs import records
from bei.jobs.records import Fault, Job, Order, Status, StoredFile
from bei.jobs.store import KEPT, Store
from bei.serving.registry import Registry

_SHORTEST_LIFE, _LONGEST_LIFE = 3600, 30 * 86400  # seconds; OpenAI's own limits
_LONGEST_NAME = 255  # of a file, in letters

Vectors = Literal["/v1/embeddings", "/embed", "/embed_all", "/embed_sparse", "/v1/embed", "/v2/embed"]
Scores = Literal["/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score"]
Labels = Literal["/predict", "/predict_tokens", "/classify", "/v1/classify"]
Endpoint = Literal[Vectors, Scores, Labels]
"""The paths of the requests in a batch."""

T = TypeVar("T")


class FileForm(TypedDict):
    """The fields of an upload; `expires_after[anchor]` and `expires_after[seconds]` may be beside them."""

    file: Annotated[str, Field(json_schema_extra={"format": "binary"})]
    purpose: Literal["batch"]


class FileObject(TypedDict):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]


class FileList(TypedDict):
    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(TypedDict):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class ExpiresAfter(Part):
    anchor: Literal["created_at"]
    seconds: Annotated[StrictInt, Field(ge=_SHORTEST_LIFE, le=_LONGEST_LIFE)]


class NewBatch(Part):
    """OpenAI's fields. `completion_window` may be other than 24h: hours or days, up to 30d."""

    input_file_id: StrictStr
    endpoint: Endpoint
    completion_window: Annotated[str, StringConstraints(strict=True, pattern=r"^[1-9][0-9]{0,2}[hd]$")]
    metadata: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(strict=True, max_length=64)],
                Annotated[str, StringConstraints(strict=True, max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None
    output_expires_after: ExpiresAfter | None = None


class BatchFault(TypedDict):
    code: str
    message: str
    line: int | None
    param: str | None


class BatchFaults(TypedDict):
    object: Literal["list"]
    data: list[BatchFault]


class RequestCounts(TypedDict):
    total: int
    completed: int
    failed: int


class BatchUsage(TypedDict):
    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class Batch(TypedDict):
    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class BatchList(TypedDict):
    object: Literal["list"]
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


# -- files -----------------------------------------------------------------------------------------------------------


async def upload(registry: Registry, body: None, call: Call) -> Result:
    from bei.api import forms  # with its parser, when the first file comes

    store = _store(registry, call)
    with store.upload(call.stated_length) as file:
        form = await forms.read(call, file)
        expires_after = _of_upload(form.fields)
        if form.filename is None:
            raise Invalid("`file` is required", param="file")
        await asyncio.to_thread(file.finish)
    now = store.clock()
    name = form.filename[:_LONGEST_NAME] or "upload"
    kept = StoredFile(
        id=file.id, filename=name, purpose="batch", size=file.size, created=now, expires=now + expires_after
    )
    return Result(_file(await asyncio.to_thread(store.add, kept)))


def _of_upload(fields: dict[str, str]) -> float:
    """The seconds for which a file is kept. Raises Invalid."""
    purpose = fields.get("purpose")
    if purpose != "batch":
        raise Invalid(f"`purpose` must be batch, not {short(purpose)}", param="purpose")
    seconds, anchor = fields.get("expires_after[seconds]"), fields.get("expires_after[anchor]", "created_at")
    if anchor != "created_at":
        raise Invalid(f"`expires_after.anchor` must be created_at, not {short(anchor)}", param="expires_after.anchor")
    if seconds is None:
        return KEPT
    if not (seconds.isascii() and seconds.isdigit() and _SHORTEST_LIFE <= int(seconds[:9]) <= _LONGEST_LIFE):
        rule = f"must be {_SHORTEST_LIFE} to {_LONGEST_LIFE}, not {short(seconds)}"
        raise Invalid(f"`expires_after.seconds` {rule}", param="expires_after.seconds")
    return float(seconds)


async def files(registry: Registry, body: None, call: Call) -> Result:
    store, purpose = _store(registry, call), call.arguments.get("purpose")
    order = call.arguments.get("order", "desc")
    if order not in ("asc", "desc"):
        raise Invalid(f"`order` must be asc or desc, not {short(order)}", param="order")
    found = [file for file in await asyncio.to_thread(store.files) if purpose in (None, "", file.purpose)]
    return _page(found if order == "asc" else found[::-1], lambda file: file.id, _file, call, 10_000, 10_000)


async def file(registry: Registry, body: None, call: Call) -> Result:
    return Result(_file(await asyncio.to_thread(_store(registry, call).file, call.parameters["file"])))


async def content(registry: Registry, body: None, call: Call) -> Reply:
    store = _store(registry, call)
    found = await asyncio.to_thread(store.file, call.parameters["file"])
    headers = {"content-type": "application/octet-stream", "x-content-type-options": "nosniff"}
    return Reply(FileContent(store.content(found.id), found.size), headers=headers)


async def delete(registry: Registry, body: None, call: Call) -> Result:
    id = call.parameters["file"]
    await asyncio.to_thread(_store(registry, call).delete, id)
    return Result({"id": id, "object": "file", "deleted": True})


# -- batches ---------------------------------------------------------------------------------------------------------


async def create(registry: Registry, body: NewBatch, call: Call) -> Result:
    store = _store(registry, call)
    given = await asyncio.to_thread(_found, store, body.input_file_id)
    if given.purpose != "batch":
        raise Invalid(f"`input_file_id` {given.id} is a file for {given.purpose}, not for batch", param="input_file_id")
    now = store.clock()
    order = Order(
        id=records.new_id("batch_"),
        created=now,
        expires=now + _seconds(body.completion_window),
        window=body.completion_window,
        endpoint=body.endpoint,
        base=call.base,
        metadata=body.metadata,
        input_file_id=given.id,
        output_seconds=None if body.output_expires_after is None else body.output_expires_after.seconds,
        output_file_id=records.new_id("file-"),
        error_file_id=records.new_id("file-"),
    )
    return Result(_batch(await asyncio.to_thread(store.create, order)))


def _found(store: Store, id: str) -> StoredFile:
    try:
        return store.file(id)
    except NotFound as missing:
        raise Invalid(f"`input_file_id`: {missing.message}", param="input_file_id") from None


def _seconds(window: str) -> int:
    """Raises Invalid."""
    seconds = int(window[:-1]) * (3600 if window[-1] == "h" else 86400)
    if seconds > _LONGEST_LIFE:
        raise Invalid(f"`completion_window` must be at most 30d, not {window}", param="completion_window")
    return seconds


async def batches(registry: Registry, body: None, call: Call) -> Result:
    found = await asyncio.to_thread(_store(registry, call).jobs)
    return _page(found[::-1], lambda job: job.order.id, _batch, call, 20, 100)


async def batch(registry: Registry, body: None, call: Call) -> Result:
    return Result(_batch(await asyncio.to_thread(_store(registry, call).job, call.parameters["batch"])))


async def cancel(registry: Registry, body: None, call: Call) -> Result:
    return Result(_batch(await asyncio.to_thread(_store(registry, call).cancel, call.parameters["batch"])))


# -- both ------------------------------------------------------------------------------------------------------------


def _store(registry: Registry, call: Call) -> Store:
    """Raises NotFound without `--batch-dir`, and Forbidden for a page that any user of this server's machine may open:
    without keys nothing else tells it from a client."""
    if registry.jobs is None:
        raise NotFound("this server keeps no files and batches; start it with --batch-dir FOLDER")
    if not registry.settings.api_key and cors.is_strange(call, registry.settings):
        raise Forbidden("pages may not use the files of a server without an API key; see --cors-allow-origin")
    return registry.jobs


def _page(
    found: Sequence[T], id_of: Callable[[T], str], shown: Callable[[T], Any], call: Call, limit: int, most: int
) -> Result:
    """The part of a list that `after` and `limit` ask for. Raises Invalid."""
    after, given = call.arguments.get("after"), call.arguments.get("limit", str(limit))
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= most):
        raise Invalid(f"`limit` must be 1 to {most}, not {short(given)}", param="limit")
    begin = 0
    if after:
        begin = next((i + 1 for i, one in enumerate(found) if id_of(one) == after), -1)
        if begin < 0:
            raise Invalid(f"`after` {short(after)} is not in the list", param="after")
    page = [shown(one) for one in found[begin : begin + int(given)]]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    has_more = begin + len(page) < len(found)
    return Result({"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": has_more})


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def _file(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created),
        "expires_at": _whole(file.expires),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def _batch(job: Job) -> dict[str, Any]:
    order, progress = job.order, job.progress
    statuses: tuple[Status, ...] = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling")
    return {
        "id": order.id,
        "object": "batch",
        "endpoint": order.endpoint,
        "model": order.base,
        "errors": {"object": "list", "data": list(map(_fault, progress.faults))} if progress.faults else None,
        "input_file_id": order.input_file_id,
        "completion_window": order.window,
        "status": job.status,
        "output_file_id": order.output_file_id if job.is_final and progress.output_size else None,
        "error_file_id": order.error_file_id if job.is_final and progress.error_size else None,
        "created_at": int(order.created),
        "expires_at": int(order.expires),
        **{f"{status}_at": _whole(job.at(status)) for status in (*statuses, "cancelled")},
        "request_counts": {"total": progress.total, "completed": progress.completed, "failed": progress.failed},
        "usage": {
            "input_tokens": progress.tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": progress.tokens,
        },
        "metadata": order.metadata,
    }


def _fault(fault: Fault) -> dict[str, Any]:
    return {"code": fault.code, "message": fault.message, "line": fault.line, "param": fault.param}


_UPLOAD = Route("/files", upload, "Takes a file of requests", form=FileForm, response=FileObject)
_CREATE = Route(
    "/batches",
    create,
    "Begins a batch: the requests of a file, answered behind all others",
    body=NewBatch,
    of_server=True,
    response=Batch,
    example={"input_file_id": "file-0", "endpoint": "/v1/embeddings", "completion_window": "24h"},
)
_ROUTES = (
    _UPLOAD,
    Route("/files", files, "The files, the newest first", method="GET", response=FileList),
    Route("/files/{file}", file, "A file's name and size", method="GET", response=FileObject),
    Route("/files/{file}/content", content, "A file's content", method="GET"),
    Route("/files/{file}", delete, "Deletes a file", method="DELETE", response=DeletedFile),
    _CREATE,
    Route("/batches", batches, "The batches, the newest first", method="GET", response=BatchList),
    Route("/batches/{batch}", batch, "A batch's state and counts", method="GET", response=Batch),
    Route("/batches/{batch}/cancel", cancel, "Ends a batch early; what is answered stays", response=Batch),
)
DIALECT = Dialect(
    "batch_api",
    tuple(route.at(prefix + route.path) for prefix in ("/v1", "/openai/v1", "/openai") for route in _ROUTES),
    errors=OPENAI,
)
