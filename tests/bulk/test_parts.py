"""The bookkeeping of a run that may be killed at any moment."""

from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bei import files
from bei.bulk.outputs import Output
from bei.bulk.parts import Parts
from bei.errors import SetupError

IDENTITY = {"model": "a", "rows": 4}


class Killed(BaseException):
    """The effect of SIGKILL as seen from outside: nothing after it runs."""


def run(parts, output, order, kill_at):
    """Writes the pending parts in some order, and dies before, in or after the step `kill_at`."""
    steps = iter(range(1_000_000))

    def step():
        if next(steps) == kill_at:
            raise Killed

    written = []
    with parts.claim(output, IDENTITY):
        pending = parts.pending()
        for index in sorted(pending, key=lambda i: order[i]):
            step()
            (parts.folder / f".{len(written)}.unfinished").write_bytes(b"torn")  # as a kill leaves it
            with files.replacing(parts.place(index)) as unfinished:
                unfinished.write_bytes(b"torn")
                step()
                pq.write_table(pa.table({"index": [index]}), unfinished)
                step()
            written.append(index)
    return written


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(0, 20), max_size=5), st.randoms())
def test_every_part_is_written_once_whatever_is_killed(tmp_path_factory, count, kills, random):
    output = tmp_path_factory.mktemp("job") / "out"
    parts, done = Parts(output, count), set()
    order = random.sample(range(count), count)
    for kill_at in [*kills, -1]:
        before = {index: parts.place(index).stat().st_mtime_ns for index in done}
        with suppress(Killed):
            run(parts, output, order, kill_at)
        assert {index: parts.place(index).stat().st_mtime_ns for index in done} == before
        done = set(range(count)) - set(parts.pending())
    assert done == set(range(count))
    assert [pq.read_table(parts.place(i))["index"].to_pylist() for i in range(count)] == [[i] for i in range(count)]
    with parts.claim(output, IDENTITY):
        assert not list(output.glob("*unfinished"))


def test_parts_of_another_job_are_refused_and_an_empty_job_is_not(tmp_path):
    parts = Parts(tmp_path / "out", 2)
    with parts.claim(tmp_path / "out", {"model": "b"}):
        pass
    with parts.claim(tmp_path / "out", IDENTITY):
        parts.write(0, pa.table({"a": [1]}))
    with (
        pytest.raises(SetupError, match="belongs to another job: its `model` is a, here it is b; remove it"),
        parts.claim(tmp_path / "out", {"model": "b"}),
    ):
        pass


def test_one_at_a_time(tmp_path):
    parts = Parts(tmp_path / "out", 2)
    with (
        parts.claim(tmp_path / "out", IDENTITY),
        pytest.raises(SetupError, match="being written by another process"),
        parts.claim(tmp_path / "out", IDENTITY),
    ):
        pass


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(SetupError, match="a folder with other files"), Parts(tmp_path, 1).claim(tmp_path, IDENTITY):
        pass


def test_workers_agree_on_an_engine_and_its_precision(tmp_path):
    parts = Parts(tmp_path, 1)
    parts.agree("native in bf16")
    parts.agree("native in bf16")
    for other in ("native in fp32", "torch in bf16"):
        message = f"begun by native in bf16, this machine computes by {other}: set --engine and --precision"
        with pytest.raises(SetupError, match=message):
            parts.agree(other)


@pytest.mark.parametrize("name", ["_job.json", "_engine", "part-000000.parquet"])
def test_a_link_among_the_parts_is_not_followed(tmp_path, name):
    parts, secret = Parts(tmp_path / "out", 1), tmp_path / "secret"
    secret.write_text("{}")
    parts.folder.mkdir()
    (parts.folder / "_job.json").touch()
    (parts.folder / name).unlink(missing_ok=True)
    (parts.folder / name).symlink_to(secret)
    with pytest.raises(SetupError, match=f"{name} is a link"), parts.claim(tmp_path / "out", IDENTITY):
        pass
    assert secret.read_text() == "{}"


def claim(parts: Parts) -> None:
    with parts.claim(parts.folder, IDENTITY):
        pass


@pytest.mark.parametrize(
    ("name", "use"), [("_job.json", claim), ("_engine", lambda parts: parts.agree("fp32"))], ids=["claim", "agree"]
)
def test_nor_is_one_that_comes_later(tmp_path, monkeypatch, name, use):
    monkeypatch.setattr(Parts, "_refuse_strangers", lambda *_: None)
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SetupError, match="symbolic link"):
        use(Parts(tmp_path, 1))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b""])
def test_a_note_that_no_job_wrote_is_a_line(tmp_path, text):
    parts = Parts(tmp_path / "out", 1)
    run(parts, tmp_path / "out", [0], -1)
    (parts.folder / "_job.json").write_bytes(text)
    with pytest.raises(SetupError, match=r"_job\.json was not written"):
        claim(parts)
    for suffix, note in ((".npy", "out.npy.json"), (".parquet", None)):
        place = tmp_path / f"out{suffix}"
        place.write_bytes(b"x")
        if note is None:
            pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"bei": text}), place)
        else:
            (tmp_path / note).write_bytes(text)
        with pytest.raises(SetupError, match="was not written by"):
            Output(place).is_complete(IDENTITY)
    (parts.folder / "_engine").write_bytes(b"\xff")
    with pytest.raises(SetupError, match="was begun by"):
        parts.agree("native fp32")


def test_nothing_is_removed_that_a_job_did_not_put_there(tmp_path):
    parts = Parts(tmp_path / "out.parquet.parts", 1)
    run(parts, tmp_path / "out.parquet", [0], -1)
    (parts.folder / "mine.txt").write_text("kept")
    parts.drop()
    assert [file.name for file in parts.folder.iterdir()] == ["mine.txt"]
    (parts.folder / "mine.txt").unlink()
    parts.drop()
    assert not parts.folder.exists()
    parts.drop()
