"""A real Ray of one node: two workers write the same bytes, also after the driver was killed; and Ray Serve."""

import json
import subprocess
import sys

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.support.bulk_jobs import QUIET, texts
from tests.support.servers import ROOT, free_port, wait_until_ready
from tests.support.waiting import wait_until

QUIETLY = {"env": QUIET, "stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}


def test_two_workers_write_what_one_process_writes(command, ray_address, tmp_path):
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": texts(2000)}), source)
    subprocess.run(command(source, tmp_path / "here.npy"), check=True, timeout=120, **QUIETLY)
    words = command(source, tmp_path / "there.npy", "--ray", ray_address, "--workers", "2", "--part-rows", "50")
    parts = tmp_path / "there.npy.parts"
    driver = subprocess.Popen(words, **QUIETLY)
    wait_until(lambda: driver.poll() is not None or list(parts.glob("part-*")), 120)
    driver.kill()
    driver.wait()
    begun = {part: part.stat().st_mtime_ns for part in parts.glob("part-*")}
    assert begun
    done = subprocess.run(words, env=QUIET, timeout=180, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "there.npy"), np.load(tmp_path / "here.npy"))


def test_what_an_actor_raises_is_one_line(command, ray_address, tmp_path):
    (tmp_path / "in.txt").write_text("cat\n" * 5 + "dog " * 99 + "\n")
    words = command(tmp_path / "in.txt", tmp_path / "out.npy", "--ray", ray_address)
    done = subprocess.run(
        words, env={**QUIET, "BEI_AUTO_TRUNCATE": "false"}, timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "in.txt: rows 1 to 6: " in done.stderr.splitlines()[-1]


def test_ray_serve(config, ray_address, tmp_path):
    port, log = free_port(), tmp_path / "log"
    named = {**yaml.safe_load(config.read_text()), "environment_variables": {"BEI_SERVED_MODEL_NAME": "second"}}
    (second := tmp_path / "second.yaml").write_text(json.dumps(named))
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, ray_address, str(port), f"{config}:{second}"],
            cwd=ROOT / "examples" / "ray-serve", env=QUIET, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, log, timeout=120)
        answer = httpx.post(f"{url}/v1/embeddings", json={"input": ["the cat", "a dog"]}, timeout=30).json()
        assert [len(row["embedding"]) for row in answer["data"]] == [48, 48]
        assert httpx.post(f"{url}/embed", json={"inputs": "the cat"}).json()[0] == answer["data"][0]["embedding"]
        named = httpx.post(f"{url}/v1/embeddings", json={"input": "the cat", "model": "second"}).json()
        assert (named["model"], answer["model"] != "second") == ("second", True)
        multiplexed = {"serve_multiplexed_model_id": "second"}
        named = httpx.post(f"{url}/v1/embeddings", json={"input": "the cat"}, headers=multiplexed).json()
        assert (named["model"], named["data"][0]) == ("second", answer["data"][0])
        wrong = {"serve_multiplexed_model_id": "third"}
        assert httpx.post(f"{url}/embed", json={"inputs": "the cat"}, headers=wrong).status_code == 404
        assert httpx.post(f"{url}/rerank", json={"query": "a", "texts": ["b"]}).status_code == 424
        assert httpx.get(f"{url}/nowhere").status_code == 404
        assert "/v1/embeddings" in httpx.get(f"{url}/openapi.json").json()["paths"]
    finally:
        process.terminate()
        process.wait(timeout=60)


SERVE = """
import sys, time
import ray
from ray import serve
address, port, config = sys.argv[1:]
ray.init(address, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
sys.path.insert(0, ".")
from ray_serve import Arguments, app
serve.run(app(Arguments(config=config, threads=1)))
time.sleep(600)
"""
