"""The command in a process of its own: its output, its refusals, and that SIGKILL costs no row."""

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from bei import cli, extras
from bei.bulk import run as bulk
from bei.bulk.parts import Parts
from bei.serving.answers import Options
from bei.serving.lists import requests
from bei.serving.service import Service
from bei.settings import Settings
from tests.support.bulk_jobs import QUIET, texts
from tests.support.configs import tiny_config
from tests.support.tiny_models import random_model, save, write_json
from tests.support.waiting import wait_until

FLAGS = ("--engine", "native", "--precision", "fp32", "--threads", "1", "--log-level", "warning")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    file = tmp_path_factory.mktemp("source") / "in.parquet"
    pq.write_table(pa.table({"id": range(500), "text": texts(500)}), file)
    return file


@pytest.fixture
def invoke(config):
    def run(*arguments):
        return CliRunner().invoke(cli.main, ["embed", *map(str, arguments), "--config", str(config), *FLAGS])

    return run


@pytest.fixture(scope="module")
def service(config):
    service = Service(Settings.from_file(config, engine="native", precision="fp32", threads=1))
    service.load()
    yield service
    service.close()


def vectors(table):
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), -1)


def test_parquet_keeps_columns_and_order(invoke, source, tmp_path, service):
    result = invoke(source, tmp_path / "out.parquet", "--part-rows", "64")
    assert result.exit_code == 0, result.output
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.drop(["embedding"]).to_pylist() == pq.read_table(source).to_pylist()
    np.testing.assert_array_equal(vectors(table), asyncio.run(service.model.embed(texts(500))).rows)
    assert [file.name for file in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize("flags", [(), ("--dimensions", "8"), ("--no-normalize",)])
def test_npy_and_a_folder_hold_the_same(invoke, source, tmp_path, service, flags):
    for output in ("out.npy", "out"):
        assert invoke(source, tmp_path / output, "--part-rows", "100", *flags).exit_code == 0
    found = np.load(tmp_path / "out.npy")
    options = {"dimensions": 8 if "8" in flags else None, "normalize": "--no-normalize" not in flags}
    np.testing.assert_array_equal(found, asyncio.run(service.model.embed(texts(500), **options)).rows)
    np.testing.assert_array_equal(vectors(pq.read_table(tmp_path / "out")), found)
    assert json.loads((tmp_path / "out.npy.json").read_text())["model"]


def test_a_prompt(tmp_path, tiny_folder):
    model = save(tmp_path / "model", random_model("bert"))
    write_json(model / "config_sentence_transformers.json", {"prompts": {"query": "the old "}})
    (tmp_path / "in.txt").write_text("cat\ndog\n")
    settings = Settings.load(tiny_config(model), environ={}, engine="native", precision="fp32", threads=1)
    assert bulk.embed(settings, tmp_path / "in.txt", tmp_path / "out.npy", prompt_name="query") == 2
    service = Service(settings)
    service.load()
    rows = asyncio.run(service.model.embed(["cat", "dog"], options=Options(prompt_name="query"))).rows
    service.close()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), rows)


def test_long_texts_go_in_requests_of_bounded_size():
    some = ["a" * length for length in (70_000, 1, 30_000, 30_000, 30_000, *[1] * 300)]
    cut = list(requests(some, 100, len))
    assert [text for request in cut for text in request] == some
    assert [len(request) for request in cut] == [1, 3, 100, 100, 100, 1]


def test_again_is_nothing_to_do_and_another_job_is_refused(invoke, source, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("the cat\n")
    for output in (tmp_path / "out.parquet", tmp_path / "out.npy", tmp_path / "out"):
        assert invoke(source, output).exit_code == 0
        written = output.stat().st_mtime_ns
        assert invoke(source, output).exit_code == 0
        assert output.is_dir() or output.stat().st_mtime_ns == written
        refused = invoke(other, output)
        assert refused.exit_code == 2
        assert "belongs to another job: its `input` is" in refused.stderr
        assert "its `dimensions` is null, here it is 8" in invoke(source, output, "--dimensions", "8").stderr
    foreign = tmp_path / "mine.npy"
    np.save(foreign, np.zeros(3))
    assert "mine.npy exists, and `bei embed` did not write it" in invoke(source, foreign).stderr


def test_a_job_may_have_a_lower_priority(invoke, source, tmp_path, monkeypatch):
    """It is that of the process, with all its threads, before the model is loaded."""
    lowered = []
    monkeypatch.setattr(os, "nice", lowered.append)
    assert invoke(source, tmp_path / "out.npy", "--nice", "7").exit_code == 0
    assert lowered == [7]
    assert invoke(source, tmp_path / "other.npy").exit_code == 0
    assert lowered == [7, 0]


def test_every_device_computes(config, source, tmp_path, service):
    each = ",".join(f"cpu:{number}" for number in sorted(os.sched_getaffinity(0)))
    flags = [flag for flag in FLAGS if flag not in ("--threads", "1")]
    command = ["embed", str(source), str(tmp_path / "out.npy"), "--config", str(config), *flags, "--devices", each]
    result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), asyncio.run(service.model.embed(texts(500))).rows)
    result = CliRunner().invoke(cli.main, [*command, "--ray", "local"])
    assert result.exit_code == 2
    assert "--devices is for this machine; on a cluster set --workers and --threads" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.csv", "out.npy"), "absent.csv: No such file or folder"),
        (("IN", "out.csv"), "write to a file that ends with .parquet or .npy, or to a folder"),
        (("IN", "out.npy", "--column", "body"), "has no column 'body'; it has id, text: choose one with --column"),
        (("IN", "out.npy", "--dimensions", "49"), "--dimensions must be between 1 and 48, not 49"),
        (("IN", "out.npy", "--prompt-name", "q"), "--prompt-name 'q' is not one of the model's prompts: none"),
        (("IN", "out.npy", "--workers", "2"), "--workers is for --ray; on this machine use --threads"),
        (("IN", "out.npy", "--ray", "local", "--nice", "5"), "--nice is for this machine; the processes of --ray have"),
        (("IN", "out.npy", "--ray", "127.0.0.1:1"), "--ray 127.0.0.1:1: Connection refused"),
    ],
)
def test_what_is_wrong_is_one_line(invoke, source, tmp_path, arguments, message):
    source_or, output, *flags = arguments
    result = invoke(source if source_or == "IN" else source_or, tmp_path / output, *flags)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("bei: ")]
    assert message in line


@pytest.mark.parametrize(
    ("head", "flags", "task", "route"),
    [
        ("ForSequenceClassification", {}, "classifier", "/predict"),
        ("ForMaskedLM", {"pooling": "splade"}, "sparse", "/embed_sparse"),
    ],
)
def test_other_models_are_told_where_to_go(tmp_path, head, flags, task, route):
    names = {"id2label": {0: "a", 1: "b", 2: "c"}}
    model = save(tmp_path / "model", random_model("bert", 0, head, **names), pooling=None)
    settings = Settings.load(tiny_config(model), environ={}, **flags)
    (tmp_path / "in.txt").write_text("cat\n")
    with pytest.raises(bulk.SetupError, match=f"its task is {task}: .* POST {route}"):
        bulk.embed(settings, tmp_path / "in.txt", tmp_path / "out.npy")


def test_a_text_that_the_model_refuses_is_named_with_its_rows(tmp_path, tiny_folder):
    (tmp_path / "in.txt").write_text("cat\n" * 5 + "dog " * 99 + "\n")
    settings = Settings.load(tiny_config(tiny_folder), environ={}, engine="null", auto_truncate=False)
    with pytest.raises(bulk.SetupError, match=r"in.txt: rows 5 to 6: .*must have at most 64 tokens"):
        bulk.embed(settings, tmp_path / "in.txt", tmp_path / "out.npy", part_rows=2)


def test_killed_by_sigkill_again_and_again(command, tmp_path):
    """Each run is killed once it has written more; the bytes equal those of an uninterrupted run."""
    source = tmp_path / "in.csv"
    source.write_text("text,id\n" + "".join(f"{text},{i}\n" for i, text in enumerate(texts(3000))))
    whole, broken = tmp_path / "whole.parquet", tmp_path / "broken.parquet"
    flags = ("--part-rows", "100")
    subprocess.run(command(source, whole, *flags), env=QUIET, check=True, timeout=120, stderr=subprocess.DEVNULL)
    parts = broken.with_name("broken.parquet.parts")
    for target in (1, 8, 20):
        process = subprocess.Popen(command(source, broken, *flags), env=QUIET, stderr=subprocess.DEVNULL)
        wait_until(lambda: process.poll() is not None or len(list(parts.glob("part-*"))) >= target, 120)  # noqa: B023  it is called here
        process.kill()
        process.wait()
    subprocess.run(command(source, broken, *flags), env=QUIET, check=True, timeout=120, stderr=subprocess.DEVNULL)
    assert broken.read_bytes() == whole.read_bytes()
    assert pq.read_table(broken)["id"].to_pylist() == [str(i) for i in range(3000)]
    assert not parts.exists()


def test_rows_are_counted_as_they_are_done(invoke, source, tmp_path, monkeypatch):
    """Rows count before the file of their part exists: of 500 rows in one part, some before the rest is computed."""
    told = []
    monkeypatch.setattr(bulk.Bar, "add", lambda self, *counts: told.append(counts))
    assert invoke(source, tmp_path / "out.npy").exit_code == 0
    assert len(told) > 1
    assert sum(rows for rows, _ in told) == 500
    assert sum(tokens for _, tokens in told) > 500


def started(command, tmp_path, rows, part_rows):
    """A run over texts that has begun a part, the folder of its parts, and the file of its messages."""
    source, log, parts = tmp_path / "in.txt", tmp_path / "log", tmp_path / "out.npy.parts"
    source.write_text("\n".join(texts(rows)) + "\n")
    words = command(source, tmp_path / "out.npy", "--part-rows", str(part_rows))
    with log.open("w") as stderr:
        process = subprocess.Popen(words, env=QUIET, stderr=stderr, start_new_session=True)
    wait_until(lambda: process.poll() is not None or f"/{rows // 1000}k" in log.read_text(), 120, log.read_text)
    assert process.poll() is None, log.read_text()
    return process, parts, log


def test_ctrl_c(command, tmp_path):
    """The first one reports at once what it waits for; the second one waits for nothing; then the same command
    resumes."""
    process, parts, log = started(command, tmp_path, rows=400_000, part_rows=200_000)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: "Ctrl-C again ends at once" in log.read_text(), 60, log.read_text)
    assert process.poll() is None, log.read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert not list(parts.glob("part-*"))


def test_one_ctrl_c_keeps_what_is_begun(command, tmp_path):
    process, parts, log = started(command, tmp_path, rows=100_000, part_rows=2_000)
    wait_until(lambda: list(parts.glob("part-*")), 120, log.read_text)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    count = len(list(parts.glob("part-*")))
    assert 0 < count < 50
    last = log.read_text().splitlines()[-1]
    assert last.startswith(
        f"bei: stopped; {2000 * count:,} of 100,000 rows are kept in {parts}; go on with: bei embed "
    )
    assert last.endswith(shlex.join(map(str, process.args[-len(shlex.split(last.partition(" bei embed ")[2])) :])))
    assert not list(parts.glob(".*"))


def facts(page: str) -> dict[str, str]:
    return dict(re.findall("<tr><th>([^<]*)</th><td>([^<]*)</td></tr>", page))


def test_a_report_tells_of_lengths_cuts_and_copies(invoke, tmp_path):
    source, page = tmp_path / "in.txt", tmp_path / "report.html"
    source.write_text(
        "\n".join(["the cat", "a dog", "the cat", "a dog", "the cat", "the cat " * 99, *texts(400)]) + "\n"
    )
    command = (source, tmp_path / "out.npy", "--part-rows", "50", "--report", page)
    assert invoke(*command).exit_code == 0
    written = page.read_text()
    ElementTree.fromstring(re.search("<svg.*?</svg>", written)[0])
    lines = source.read_text().splitlines()
    found = facts(written)
    assert found["rows"] == found["rows of this run"] == str(len(lines))
    assert found["copies of an earlier row"] == str(len(lines) - len(set(lines)))
    assert found["texts of this run that were cut"] == "1"
    assert found["characters of a text: median, 99 %, most"].endswith(f", {max(map(len, lines))}")
    assert float(found["tokens a second"].replace(",", "")) > 0
    assert "<li>row 1: 3 times</li>" in written
    heights = map(int, re.findall(r"<title>[^<]*: (\d+)</title>", written))
    assert sum(heights) == len(lines)
    page.unlink()
    assert invoke(*command).exit_code == 0, "of a job that is complete already, too"
    assert facts(page.read_text()) | {"rows of this run": "0"} == facts(page.read_text())
    refused = invoke(source, tmp_path / "other.npy", "--report", tmp_path / "report.txt")
    assert (refused.exit_code, "the file's name must end with .html" in refused.stderr) == (2, True)


@pytest.mark.parametrize(("missing", "flags", "extra"), [("ray", ("--ray", "local"), "ray"), ("pyarrow", (), "bulk")])
def test_a_missing_package_is_named_with_its_extra(invoke, source, tmp_path, monkeypatch, missing, flags, extra):
    for name in [name for name in sys.modules if name.startswith("bei.bulk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    refused = invoke(source, tmp_path / "out.npy", *flags)
    assert refused.exit_code == 2
    assert f"bei: {missing} is not installed: {extras.install(extra)}" in refused.stderr.splitlines()
    assert not (tmp_path / "out.npy.parts").exists(), "before anything is begun"


def test_a_kill_between_the_end_and_the_last_rename_or_after_it(invoke, source, tmp_path, monkeypatch):
    output = tmp_path / "out.npy"
    monkeypatch.setattr(Parts, "drop", lambda *_: None)
    assert invoke(source, output, "--part-rows", "100").exit_code == 0
    monkeypatch.undo()
    made, parts = output.read_bytes(), tmp_path / "out.npy.parts"
    assert parts.exists()  # as if killed after the rename
    assert invoke(source, output, "--part-rows", "100").exit_code == 0
    assert not parts.exists() and output.read_bytes() == made


def test_the_server_imports_none_of_it():
    code = "import bei.cli, sys; sys.exit(any(name in sys.modules for name in ('pyarrow', 'ray', 'tqdm')))"
    assert subprocess.run([sys.executable, "-c", code], env=QUIET).returncode == 0
