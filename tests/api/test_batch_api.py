"""OpenAI's Batch API without a socket: forms, files, batches, pages of lists, and refusals."""

import asyncio
import json
from functools import partial
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bei import api
from bei.api import Call, batch_api, forms
from bei.api.table import TABLE
from bei.errors import ClientGone
from bei.jobs.run import Run
from bei.jobs.runner import Runner
from bei.metrics import Metrics
from bei.serving.registry import Registry
from tests.support.calls import call
from tests.support.stored_jobs import Clock, line, ordered, store_in, stored
from tests.support.waiting import run

BOUNDARY = "xyz"


def form(content: bytes = b"{}\n", filename: str | None = "a.jsonl", name: str = "file", **fields: str) -> bytes:
    fields = {"purpose": "batch", **fields}
    rows = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in fields.items()]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    file = b"" if filename is None else head.encode() + content + b"\r\n"
    return "".join(rows).encode() + file + f"--{BOUNDARY}--\r\n".encode()


@pytest.fixture
def registry(start_service, tmp_path):
    found = Registry(start_service())
    found.jobs = store_in(tmp_path)
    return found


def ask(registry, method: str, target: str, body: bytes | dict = b"", **headers: str) -> tuple[int, dict]:
    path, _, query = target.partition("?")
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    if isinstance(body, bytes) and body:
        headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}", **headers}
    reply = run(api.answer(registry, Call(method, path, raw, headers, query=query)))
    return reply.status, json.loads(reply.body)


def said(answer: tuple[int, dict]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["message"]


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_comes_and_goes(registry):
    content = b'{"a": 1}\r\n--xy\r\n\r\n--xyzz'
    status, sent = ask(registry, "POST", "/v1/files", form(content))
    assert (status, sent["bytes"], sent["filename"], sent["purpose"]) == (200, len(content), "a.jsonl", "batch")
    assert sent["expires_at"] - sent["created_at"] == 30 * 86400
    assert ask(registry, "GET", f"/v1/files/{sent['id']}") == (200, sent)
    for prefix in ("/v1", "/openai", "/openai/v1"):
        assert ask(registry, "GET", f"{prefix}/files")[1]["data"] == [sent]
        reply = run(api.answer(registry, Call("GET", f"{prefix}/files/{sent['id']}/content")))
        assert (reply.status, reply.body, reply.size) == (200, content, len(content))
    reply = run(
        api.answer(registry, Call("GET", f"/v1/files/{sent['id']}/content", headers={"accept-encoding": "gzip"}))
    )
    assert "content-encoding" not in reply.headers
    deleted = {"id": sent["id"], "object": "file", "deleted": True}
    assert ask(registry, "DELETE", f"/v1/files/{sent['id']}") == (200, deleted)
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert said(ask(registry, method, f"/v1/files/{sent['id']}{path}"))[0] == 404


@settings(max_examples=40)
@given(st.binary(max_size=200), st.lists(st.integers(0, 400), max_size=6))
def test_a_form_may_come_in_any_parts(tmp_path_factory, content, cuts):
    store = store_in(tmp_path_factory.mktemp("store"))
    whole = form(content)
    places = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})

    async def read() -> bytes:
        async def parts():
            for begin, end in pairwise(places):
                yield whole[begin:end]

        headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
        with store.upload() as upload:
            found = await forms.read(Call("POST", "/v1/files", headers=headers, stream=parts()), upload)
        assert (found.filename, found.fields) == ("a.jsonl", {"purpose": "batch"})
        return store.content(upload.id).read_bytes()

    assert asyncio.run(read()) == content


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (form(purpose="fine-tune"), {}, 422, "`purpose` must be batch, not 'fine-tune'"),
        (form(filename=None), {}, 422, "`file` is required"),
        (form(name="data"), {}, 422, "the form has a second file, 'data'; send one, as `file`"),
        (form(**{"expires_after[seconds]": "10"}), {}, 422, "`expires_after.seconds` must be 3600 to 2592000"),
        (form(**{"expires_after[anchor]": "x"}), {}, 422, "`expires_after.anchor` must be created_at, not 'x'"),
        (form(x="a" * 2000), {}, 422, "`x` has more than 1024 bytes"),
        (form(**{f"f{i}": "" for i in range(20)}), {}, 422, "the form has more than 16 fields"),
        (form()[:-4], {}, 400, "the form ends before its last boundary"),
        (b"{}", {}, 400, "the form cannot be read"),
        (b"--xyz\r\n" + b"a: b\r\n" * 50, {}, 400, "the form cannot be read"),
        (form(), {"content-type": "application/json"}, 415, "content-type 'application/json': send multipart"),
        (form(), {"content-type": "multipart/form-data"}, 415, "content-type 'multipart/form-data': send multipart"),
        (form(), {"content-type": f"multipart/form-data; boundary={'b' * 300}"}, 400, "the form cannot be read"),
    ],
)
def test_a_form_that_is_refused_leaves_nothing(registry, body, headers, status, message):
    found = said(ask(registry, "POST", "/v1/files", body, **headers))
    assert (found[0], found[1][: len(message)]) == (status, message)
    assert (registry.jobs.files(), registry.jobs.used()) == ([], 0)


def test_a_client_that_leaves_leaves_nothing(registry):
    async def parts():
        yield form()[:100]
        raise ClientGone("the client left while it was sending")

    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    with pytest.raises(ClientGone):
        run(api.answer(registry, Call("POST", "/v1/files", headers=headers, stream=parts())))
    assert registry.jobs.used() == 0


# -- batches ---------------------------------------------------------------------------------------------------------


def new(registry, **changed) -> tuple[int, dict]:
    sent = ask(registry, "POST", "/v1/files", form(line("a") + line("b", "")))[1]
    body = {"input_file_id": sent["id"], "endpoint": "/v1/embeddings", "completion_window": "24h", **changed}
    return ask(registry, "POST", "/v1/batches", body)


def test_a_batch_from_its_beginning_to_its_end(registry):
    status, batch = new(registry, metadata={"a": "b"}, output_expires_after={"anchor": "created_at", "seconds": 3600})
    assert (status, batch["status"], batch["metadata"], batch["output_file_id"]) == (
        200,
        "validating",
        {"a": "b"},
        None,
    )
    assert batch["expires_at"] - batch["created_at"] == 86400
    runner = Runner(registry.jobs, partial(api.answer_line, registry), registry.metrics)
    job = registry.jobs.job(batch["id"])
    runner._check(job)
    run(Run(registry.jobs, job, partial(api.answer_line, registry), registry.metrics).finish())
    runner._end(job)
    ended = ask(registry, "GET", f"/v1/batches/{batch['id']}")[1]
    assert (ended["status"], ended["request_counts"]) == ("completed", {"total": 2, "completed": 1, "failed": 1})
    live = json.loads(call(registry.services[0], "/v1/embeddings", {"input": "the cat"}).body)
    (good,), (bad,) = (
        list(map(json.loads, registry.jobs.content(ended[name]).read_bytes().splitlines()))
        for name in ("output_file_id", "error_file_id")
    )
    assert (good["custom_id"], good["response"]["body"]) == ("a", live)
    assert ended["usage"]["input_tokens"] == ended["usage"]["total_tokens"] == live["usage"]["prompt_tokens"]
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("b", 400)
    assert bad["response"]["body"]["error"]["message"].startswith("`input` cannot be empty")
    output = ask(registry, "GET", f"/v1/files/{ended['output_file_id']}")[1]
    assert (output["purpose"], output["expires_at"] - output["created_at"]) == ("batch_output", 3600)
    exposition = registry.metrics.exposition().decode()
    assert 'bei_job_lines_total{status="completed"} 1.0' in exposition
    assert 'bei_job_lines_total{status="failed"} 1.0' in exposition
    assert said(ask(registry, "POST", f"/v1/batches/{batch['id']}/cancel")) == (
        *(422, f"{batch['id']} cannot be cancelled: its status is completed"),
    )


@pytest.mark.parametrize(
    ("changed", "status", "message"),
    [
        ({"endpoint": "/v1/chat/completions"}, 422, "`endpoint` should be '/v1/embeddings', '/embed'"),
        ({"endpoint": "/health"}, 422, "`endpoint` should be "),
        ({"completion_window": "24"}, 422, "`completion_window` "),
        ({"completion_window": "31d"}, 422, "`completion_window` must be at most 30d, not 31d"),
        ({"input_file_id": "file-x"}, 422, "`input_file_id`: no file 'file-x'"),
        ({"input_file_id": None}, 422, "`input_file_id` should be a valid string"),
        ({"metadata": {"a": 1}}, 422, "`metadata.a` should be a valid string"),
        ({"metadata": {"a" * 65: "b"}}, 422, "`metadata."),
        ({"metadata": {str(i): "" for i in range(17)}}, 422, "`metadata` "),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 422, "`output_expires_after.seconds` "),
    ],
)
def test_a_batch_that_is_refused(registry, changed, status, message):
    found = said(new(registry, **changed))
    assert (found[0], found[1][: len(message)]) == (status, message)
    assert registry.jobs.jobs() == []


def test_a_result_is_no_input(registry):
    made = stored(registry.jobs, b"{}")
    registry.jobs.add(made.__class__(**{**vars_of(made), "purpose": "batch_output"}))
    message = f"`input_file_id` {made.id} is a file for batch_output, not for batch"
    assert said(new(registry, input_file_id=made.id)) == (422, message)


def vars_of(file) -> dict:
    return {name: getattr(file, name) for name in file.__dataclass_fields__}


def test_every_endpoint_is_a_route_of_a_model():
    routes = {route.path: route for route in TABLE.routes if route.ability and route.adapter and not route.of_server}
    assert {"/v1/embeddings", "/v1/rerank", "/v1/score", "/predict", "/predict_tokens"} <= set(endpoints())
    assert set(endpoints()) <= set(routes)


def endpoints() -> list[str]:
    return list(get_args(batch_api.Endpoint))


def test_below_the_base_url_of_a_model_its_lines_are_about_that_model(registry):
    sent = ask(registry, "POST", "/models/tiny/v1/files", form(line("a", body={"input": "a", "model": "other"})))[1]
    body = {"input_file_id": sent["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = ask(registry, "POST", "/models/tiny/v1/batches", body)[1]
    assert (batch["model"], registry.jobs.job(batch["id"]).order.base) == ("tiny", "tiny")


@pytest.mark.parametrize(
    ("kind", "endpoint", "body"),
    [
        ("reranker", "/v1/rerank", {"query": "the cat", "documents": ["a dog", "the cat"]}),
        ("reranker", "/v1/score", {"text_1": "the cat", "text_2": ["a dog"]}),
        ("classifier", "/predict", {"inputs": [["the cat"]]}),
        ("entities", "/predict_tokens", {"inputs": ["the cat"], "aggregation_strategy": "simple"}),
        ("sparse", "/embed_sparse", {"inputs": ["the cat"]}),
    ],
)
def test_a_line_is_answered_as_a_live_request(prompted, tmp_path, kind, endpoint, body):
    registry = Registry(prompted[kind])
    store = store_in(tmp_path)
    job = ordered(store, stored(store, line("a", body=body, url=endpoint)).id, endpoint=endpoint)
    job.progress.become("in_progress", 1.0)
    run(Run(store, job, partial(api.answer_line, registry), Metrics()).finish())
    (answer,) = map(json.loads, store.job_folder(job.order.id).output.read_bytes().splitlines())
    live = json.loads(call(prompted[kind], endpoint, body).body)
    assert lasting(answer["response"]["body"]) == lasting(live)


def lasting(value):
    """An answer without parts that differ each time."""
    return {k: v for k, v in value.items() if k not in ("id", "created")} if isinstance(value, dict) else value


# -- lists -----------------------------------------------------------------------------------------------------------


def test_lists_have_pages(registry):
    clock = registry.jobs.clock = Clock()
    ids = {"files": [], "batches": []}
    for _ in range(5):
        clock.now += 1
        ids["files"].append(stored(registry.jobs, b"{}").id)
        ids["batches"].append(ordered(registry.jobs, "file-x").order.id)
    for kind, newest_first in ((kind, of[::-1]) for kind, of in ids.items()):
        seen, after = [], ""
        while True:
            page = ask(registry, "GET", f"/v1/{kind}?limit=2&after={after}")[1]
            seen += [one["id"] for one in page["data"]]
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            if not page["has_more"]:
                break
            after = page["last_id"]
        assert seen == newest_first
    ordered_ids = [one["id"] for one in ask(registry, "GET", "/v1/files?order=asc&purpose=batch")[1]["data"]]
    assert ordered_ids == ids["files"]
    empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert ask(registry, "GET", "/v1/files?purpose=batch_output") == (200, empty)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/v1/batches?limit=101", "`limit` must be 1 to 100, not '101'"),
        ("/v1/files?limit=0", "`limit` must be 1 to 10000, not '0'"),
        ("/v1/files?limit=x", "`limit` must be 1 to 10000, not 'x'"),
        ("/v1/files?after=file-x", "`after` 'file-x' is not in the list"),
        ("/v1/files?order=up", "`order` must be asc or desc, not 'up'"),
    ],
)
def test_a_page_that_cannot_be(registry, target, message):
    assert said(ask(registry, "GET", target)) == (422, message)


# -- the server ------------------------------------------------------------------------------------------------------


def test_without_a_folder_the_routes_name_the_flag(start_service):
    registry = Registry(start_service())
    for route in batch_api.DIALECT.routes:
        path = route.path.format(file="file-x", batch="batch_x") if "{" in route.path else route.path
        body = route.example or b""
        status, message = said(ask(registry, route.method, path, body))
        assert (status, "start it with --batch-dir FOLDER" in message) == (404, True), path


def test_pages_need_leave_where_no_key_is_asked_for(registry):
    page = {"origin": "https://example.com"}
    for method, path, body in (("GET", "/v1/files", b""), ("POST", "/v1/files", form())):
        status, message = said(ask(registry, method, path, body, **page))
        assert (status, "pages may not use the files" in message) == (403, True)
    registry.settings = registry.settings.model_copy(update={"cors_allow_origin": ("https://example.com",)})
    assert ask(registry, "POST", "/v1/files", form(), **page)[0] == 200


def test_lines_are_in_the_background(registry, monkeypatch):
    """They run when nothing else waits, and are not in the durations of live requests."""
    model = registry.services[0].model
    seen = []
    submit = model.scheduler.submit
    monkeypatch.setattr(
        model.scheduler, "submit", lambda entries: seen.append(entries[0].request.is_background) or submit(entries)
    )
    job = ordered(registry.jobs, stored(registry.jobs, line("a")).id)
    job.progress.become("in_progress", 1.0)
    run(Run(registry.jobs, job, partial(api.answer_line, registry), Metrics()).finish())
    call(registry.services[0], "/v1/embeddings", {"input": "a"})
    assert seen == [True, False]
    exposition = registry.metrics.exposition().decode()
    assert 'te_request_duration_count{model="tiny"} 1.0' in exposition
    assert 'te_embed_success{model="tiny"} 2.0' in exposition
