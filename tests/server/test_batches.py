"""OpenAI's client and its Batch API over a real socket: two workers, a SIGKILL in the middle, and the same answers."""

import io
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from tests.support.servers import BEI, free_port, wait_until_ready
from tests.support.stored_jobs import line
from tests.support.waiting import wait_until

LINES = 3000
FINAL = ("completed", "failed", "expired", "cancelled")


class Served:
    """A server on a folder of batches. Its workers end with it."""

    def __init__(self, folder: Path, checkpoint: Path, *flags: str):
        port = free_port()
        self.url, self.log = f"http://127.0.0.1:{port}", folder / f"{port}.log"
        build = {"base_model": "encoder_bert", "checkpoint_repository": {"source": "LOCAL", "repo": str(checkpoint)}}
        (folder / "config.yaml").write_text(json.dumps({"trt_llm": {"build": build}}))
        settings = ["--engine", "null", "--batch-dir", str(folder / "batches"), "--api-key", "k", *flags]
        command = [str(BEI), "serve", "--config", str(folder / "config.yaml"), "--port", str(port), *settings]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        wait_until_ready(self.url, self.process, self.log)
        self.client = OpenAI(base_url=f"{self.url}/v1", api_key="k", max_retries=0)

    def ended(self, id: str) -> openai.types.Batch:
        wait_until(lambda: self.client.batches.retrieve(id).status in FINAL, 60, self.log.read_text)
        return self.client.batches.retrieve(id)

    def answers(self, id: str | None) -> list[dict]:
        return [json.loads(row) for row in self.client.files.content(id).text.splitlines()]

    def batch(self, content: bytes) -> openai.types.Batch:
        sent = self.client.files.create(file=("requests.jsonl", io.BytesIO(content)), purpose="batch")
        made = {"input_file_id": sent.id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
        return self.client.batches.create(**made)

    def end(self) -> None:
        self.client.close()
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text()
        assert "Traceback" not in self.log.read_text()

    def kill(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def served(*arguments) -> Iterator[Served]:
    server = Served(*arguments)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def requests(count: int) -> bytes:
    rows = (line(f"r{i}", body={"input": "" if i % 500 == 7 else f"the cat {i}"}) for i in range(count))
    return b"".join(rows)


def test_a_batch_survives_a_kill_with_the_same_answers(tmp_path, tiny_folder):
    with served(tmp_path, tiny_folder, "--workers", "2") as server:
        whole = server.batch(requests(LINES))
        expected = server.ended(whole.id)
        assert (expected.status, expected.request_counts.failed) == ("completed", LINES // 500)
        cut = server.batch(requests(LINES))
        wait_until(lambda: is_begun(server.client.batches.retrieve(cut.id)))
        server.kill()
    with served(tmp_path, tiny_folder) as server:
        found = server.ended(cut.id)
        assert (found.status, found.request_counts) == (expected.status, expected.request_counts)
        assert found.usage == expected.usage
        for name in ("output_file_id", "error_file_id"):
            before, after = (server.answers(getattr(one, name)) for one in (expected, found))
            assert [(row["custom_id"], body_of(row)) for row in after] == [
                *((row["custom_id"], body_of(row)) for row in before)
            ]
        assert len({row["id"] for row in server.answers(found.output_file_id)}) == found.request_counts.completed
        live = server.client.embeddings.create(model="any", input="the cat 0", encoding_format="float")
        first = server.answers(found.output_file_id)[0]
        assert first["response"]["body"]["data"][0]["embedding"] == live.data[0].embedding
        server.end()


def is_begun(batch: openai.types.Batch) -> bool:
    if not batch.request_counts.completed:
        return False
    assert batch.status == "in_progress"
    return True


def body_of(row: dict) -> dict:
    return row["response"]["body"]


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_folder) -> Iterator[Served]:
    """With a bound of bodies that uploads do not have."""
    with served(tmp_path_factory.mktemp("served"), tiny_folder, "--payload-limit", "100kB") as server:
        yield server
        server.end()


def test_the_whole_cycle_of_openai_s_client(server):
    client = server.client
    wrong = server.ended(server.batch(line("a") + b"{\n" + line("a")).id)
    assert (wrong.status, [(of.line, of.code) for of in wrong.errors.data]) == (
        *("failed", [(2, "invalid_json_line"), (3, "duplicate_custom_id")]),
    )
    batch = server.batch(line("a") + line("b", ""))
    ended = server.ended(batch.id)
    assert (ended.status, ended.request_counts.completed, ended.request_counts.failed) == ("completed", 1, 1)
    assert [one.id for one in client.batches.list(limit=1)] == [batch.id, wrong.id]
    assert {one.purpose for one in client.files.list()} == {"batch", "batch_output"}
    assert client.files.retrieve(ended.output_file_id).filename == f"{batch.id}_output.jsonl"
    assert client.files.delete(batch.input_file_id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(batch.input_file_id)
    long = server.batch(b"".join(line(f"r{i}") for i in range(5000)))
    assert client.batches.cancel(long.id).status == "cancelling"
    cancelled = server.ended(long.id)
    assert (cancelled.status, cancelled.request_counts.failed > 0) == ("cancelled", True)
    left = server.answers(cancelled.error_file_id)
    assert {row["error"]["code"] for row in left} == {"batch_cancelled"}
    done = server.answers(cancelled.output_file_id) if cancelled.output_file_id else []
    assert [row["custom_id"] for row in (*done, *left)] == [f"r{i}" for i in range(5000)]
    stranger = OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    for refused in (
        *(stranger.files.list, lambda: stranger.files.content(ended.output_file_id)),
        lambda: stranger.files.create(file=("a", b"x" * 1_000_000), purpose="batch"),
    ):
        with pytest.raises(openai.AuthenticationError):
            refused()
    stranger.close()


def test_an_upload_is_not_a_body_in_memory(server):
    """One that the limits of bodies would refuse, in HTTP/1.1 and HTTP/2."""
    content, headers = os.urandom(1_000_000), {"authorization": "Bearer k"}
    for http2 in (False, True):
        with httpx.Client(http1=not http2, http2=http2, base_url=server.url, headers=headers) as client:
            sent = client.post("/v1/files", files={"file": ("a.jsonl", content)}, data={"purpose": "batch"})
            assert sent.status_code == 200, sent.text
            assert client.get(f"/v1/files/{sent.json()['id']}/content").content == content
            refused = client.post("/v1/files", files={"file": ("a.jsonl", content)}, data={"purpose": "other"})
            assert refused.status_code == 422
            assert client.get("/v1/files").json()["data"][0]["id"] == sent.json()["id"]
