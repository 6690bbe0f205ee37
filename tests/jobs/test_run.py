"""Jobs from their input to their files of answers: order, faults, ends, and a process that dies at any moment."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bei.jobs import run as running
from bei.jobs.output import Answered, Output
from bei.jobs.run import Run
from bei.jobs.runner import Runner
from bei.metrics import Metrics
from tests.support.stored_jobs import Clock, answers, content, line, ordered, store_in, stored
from tests.support.waiting import run, wait_until


class Server:
    """Answers a text by itself, `no` by a 400; each text may have statuses that come first."""

    def __init__(self, **first: list[int]):
        self.first, self.asked, self.open, self.most = first, [], 0, 0
        self.before: Callable[[str], Awaitable[None]] | None = None

    async def __call__(self, order, line, request_id) -> Answered:
        text = json.loads(line.body)["input"]
        self.asked.append(text)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await (self.before(text) if self.before else asyncio.sleep(0))
        finally:
            self.open -= 1
        if self.first.get(text):
            return Answered(self.first[text].pop(0), b'{"error":1}', 0)
        if text == "no":
            return Answered(400, b'{"error":{"message":"no"}}', 0)
        return Answered(200, json.dumps({"said": text}).encode(), len(text))


TEXTS = ["a", "bb", "no", "ccc", "", "no", "d"]


def job_of(tmp_path, texts=TEXTS, clock=None, **changed):
    store = store_in(tmp_path, clock=clock)
    job = ordered(store, stored(store, b"".join(line(f"r{i}", text) for i, text in enumerate(texts))).id, **changed)
    job.progress.total = len(texts)
    job.progress.become("in_progress", store.clock())
    store.job_folder(job.order.id).keep(job.progress)
    return store, job


async def finish(store, job, ask) -> None:
    await Run(store, store.job(job.order.id), ask, Metrics()).finish()


def ran(store, job, ask) -> tuple[bytes, bytes]:
    """Both files of a job that has run, before they are files of the store."""
    run(finish(store, job, ask))
    folder = store.job_folder(job.order.id)
    return folder.output.read_bytes(), folder.errors.read_bytes()


def test_answers_come_in_the_order_of_the_lines(tmp_path):
    store, job = job_of(tmp_path)
    server = Server()

    async def later_first(text):
        for _ in range(5 - len(text)):
            await asyncio.sleep(0)

    server.before = later_first
    good, bad = ([json.loads(row) for row in part.splitlines()] for part in ran(store, job, server))
    assert [row["custom_id"] for row in good] == ["r0", "r1", "r3", "r4", "r6"]
    assert [row["custom_id"] for row in bad] == ["r2", "r5"]
    assert good[1] == {
        "id": f"batch_req_{good[1]['response']['request_id']}",
        "custom_id": "r1",
        "response": {"status_code": 200, "request_id": good[1]["response"]["request_id"], "body": {"said": "bb"}},
        "error": None,
    }
    assert bad[0]["response"]["status_code"] == 400 and bad[0]["response"]["body"]["error"]["message"] == "no"
    assert len({row["id"] for row in good + bad}) == len(TEXTS)
    progress = store.job(job.order.id).progress
    assert (progress.completed, progress.failed, progress.tokens, progress.status) == (5, 2, 7, "finalizing")
    assert server.most > 1


@settings(max_examples=15)
@given(st.data())
def test_a_process_that_dies_at_any_moment_changes_no_byte(tmp_path_factory, data):
    """Uncommitted answers and half a line are there when the next process begins, and the next one dies, too."""
    texts = data.draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12))
    store, job = job_of(tmp_path_factory.mktemp("job"), texts)
    twin = tmp_path_factory.mktemp("twin")
    shutil.copytree(store.folder, twin / "batches")
    expected = ran(store_in(twin), job, Server())
    for _ in range(data.draw(st.integers(0, 3))):
        line = store.job(job.order.id).progress.line
        if line < len(texts):
            _die(store, job, data.draw(st.integers(0, len(texts) - line - 1)), commits=data.draw(st.booleans()))
        folder = store.job_folder(job.order.id)
        for place in (folder.output, folder.errors):
            with place.open("ab") as file:
                file.write(data.draw(st.sampled_from([b"", b"{", expected[0][:70]])))
    assert ran(store, job, Server()) == expected
    assert store.job(job.order.id).progress.line == len(texts)


def _die(store, job, after: int, *, commits: bool) -> None:
    """Runs a job until so many of its answers are there, without a last word."""

    class Dying(Output):
        left, is_due = after, commits

        def answer(self, line, answered):
            self.left -= 1
            if self.left < 0:
                raise ConnectionAbortedError
            return super().answer(line, answered)

        def commit(self):
            if self.left >= 0:
                return super().commit()
            for file in (self._output, self._errors):
                file.flush()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConnectionAbortedError):
        patch.setattr(running, "Output", Dying)
        run(finish(store, job, Server()))


def test_the_engine_s_faults_are_tried_alone(tmp_path):
    store, job = job_of(tmp_path, ["a", "b", "c", "d"])
    server = Server(b=[424, 500, 424, 424], c=[424])
    alone = []

    async def note(text):
        await asyncio.sleep(0)
        alone.append((text, server.open))

    server.before = note
    good, bad = ([json.loads(row) for row in part.splitlines()] for part in ran(store, job, server))
    assert [row["custom_id"] for row in good] == ["r0", "r2", "r3"]
    assert [(row["custom_id"], row["response"]["status_code"]) for row in bad] == [("r1", 424)]
    assert server.asked == ["a", "b", "c", "d", "b", "b", "c"]
    assert alone[4:] == [("b", 1), ("b", 1), ("c", 1)]


def test_a_line_that_cannot_be_answered_now_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(running, "_LONGEST_PAUSE", 0.001)
    store, job = job_of(tmp_path, ["a", "b"])
    server = Server(a=[429, 503, 503, 429, 429, 429, 429])
    good, bad = ran(store, job, server)
    assert (len(good.splitlines()), bad, server.asked.count("a")) == (2, b"", 8)


@pytest.mark.parametrize(("limit", "value", "most"), [("_LINES", 3, 3), ("_TEXTS", 5, 5), ("_BYTES", 4 * 14, 4)])
def test_lines_at_once_are_bounded(tmp_path, monkeypatch, limit, value, most):
    monkeypatch.setattr(running, limit, value)
    store, job = job_of(tmp_path, ["a"] * 20)
    server = Server()
    ran(store, job, server)
    assert (server.most, len(server.asked)) == (most, 20)


@pytest.mark.parametrize("ending", ["cancelled", "expired"])
def test_an_end_before_the_last_line(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(running, "_LOOK_SECONDS", 0.0)
    clock = Clock()
    store, job = job_of(tmp_path, ["a", "b", "stop", "c", "d"], clock, seconds=60)
    server = Server()

    async def stop(text):
        if text == "stop":
            if ending == "cancelled":
                store.cancel(job.order.id)
            clock.now += 60 * (ending == "expired")
            await asyncio.Event().wait()

    server.before = stop
    good, bad = ([json.loads(row) for row in part.splitlines()] for part in ran(store, job, server))
    assert [row["custom_id"] for row in (*good, *bad)] == ["r0", "r1", "r2", "r3", "r4"]
    assert len(good) <= 2
    assert {row["error"]["code"] for row in bad} == {f"batch_{ending}"}
    assert bad[0]["response"] is None
    progress = store.job(job.order.id).progress
    assert (progress.ending, progress.failed, server.open) == (ending, len(bad), 0)


def test_without_room_a_job_fails_with_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(running, "_ROOM_EACH", 1)
    store, job = job_of(tmp_path, ["a"] * 300)
    store.most_bytes = store.used() + 10_000
    ran(store, job, Server())
    progress = store.job(job.order.id).progress
    assert (progress.ending, progress.faults[0].code) == ("failed", "no_room")
    assert 0 < progress.completed < 300


# -- the thread ------------------------------------------------------------------------------------------------------


def until_final(store, *jobs) -> None:
    wait_until(lambda: all(store.job(job.order.id).is_final for job in jobs))


@pytest.fixture
def start():
    started = []

    def begin(store, ask) -> Runner:
        runner = Runner(store, ask, Metrics())
        runner.start()
        started.append(runner)
        return runner

    yield begin
    for runner in started:
        runner.stop()
        runner.join()


def test_jobs_become_files_of_answers(tmp_path, start):
    store = store_in(tmp_path)
    first = ordered(store, stored(store, line("a", "a") + line("b", "no")).id, output_seconds=3600)
    second = ordered(store, stored(store, line("c", "c")).id)
    broken = ordered(store, stored(store, line("a") + b"{\n").id)
    lost = ordered(store, "file-" + "0" * 32)
    start(store, Server())
    until_final(store, first, second, broken, lost)
    assert [store.job(job.order.id).status for job in (first, second, broken, lost)] == [
        *("completed", "completed", "failed", "failed")
    ]
    assert [row["custom_id"] for row in answers(store, first.order.output_file_id)] == ["a"]
    assert [row["custom_id"] for row in answers(store, first.order.error_file_id)] == ["b"]
    made = store.file(first.order.output_file_id)
    assert (made.purpose, made.size, made.expires) == (
        *("batch_output", len(content(store, made.id))),
        store.clock() + 3600,
    )
    assert {file.id for file in store.files() if file.purpose == "batch_output"} == {
        *(first.order.output_file_id, first.order.error_file_id, second.order.output_file_id)
    }
    (fault,) = store.job(broken.order.id).progress.faults
    assert (fault.code, fault.line) == ("invalid_json_line", 2)
    assert store.job(lost.order.id).progress.faults[0].code == "invalid_input_file"
    assert store.job(first.order.id).at("in_progress") and store.job(first.order.id).at("completed")


def test_one_of_several_processes_runs_jobs_and_another_takes_over(tmp_path, start):
    store = store_in(tmp_path)
    first, second, held = Server(), Server(), asyncio.Event()

    async def hold(text):
        await held.wait()

    first.before = hold
    job = ordered(store, stored(store, line("a", "a") + line("b", "b")).id)
    one = start(store, first)
    wait_until(lambda: first.open == 2)
    start(store_in(tmp_path), second)
    other = ordered(store, stored(store, b"{\n").id)
    until_final(store, other)  # is checked while the other job runs
    assert (second.asked, store.job(job.order.id).status) == ([], "in_progress")
    one.stop()
    one.join()
    assert first.open == 0
    until_final(store, job)
    assert sorted(second.asked) == ["a", "b"]


def test_a_job_that_waits_for_another_ends_at_once(tmp_path, start):
    clock, server, held = Clock(), Server(), asyncio.Event()
    store = store_in(tmp_path, clock=clock)

    async def hold(text):
        if text == "a":
            await held.wait()

    server.before = hold
    running = ordered(store, stored(store, line("a", "a")).id)
    clock.now += 1
    waiting = ordered(store, stored(store, line("b", "b")).id)
    start(store, server)
    wait_until(lambda: server.open == 1 and store.job(waiting.order.id).status == "in_progress")
    store.cancel(waiting.order.id)
    until_final(store, waiting)
    assert (store.job(waiting.order.id).status, store.job(running.order.id).status) == ("cancelled", "in_progress")
    assert [row["error"]["code"] for row in answers(store, waiting.order.error_file_id)] == ["batch_cancelled"]


def test_a_job_that_cannot_be_run_fails_after_a_while(tmp_path, start):
    store = store_in(tmp_path)
    job = ordered(store, stored(store, line("a", "a")).id)

    async def broken(order, line, request_id):
        raise ZeroDivisionError("a mistake of ours")

    start(store, broken)
    until_final(store, job)
    (fault,) = store.job(job.order.id).progress.faults
    assert (fault.code, fault.message) == ("internal_error", "the server cannot run it: a mistake of ours")


def test_an_end_that_was_cut_off_is_finished(tmp_path, start):
    """Its output is a file already, but has no record."""
    store, job = job_of(tmp_path, ["a"])
    ran(store, job, Server())
    store.job_folder(job.order.id).output.rename(store.content(job.order.output_file_id))
    start(store, Server())
    until_final(store, job)
    assert store.job(job.order.id).status == "completed"
    assert [row["custom_id"] for row in answers(store, job.order.output_file_id)] == ["r0"]
