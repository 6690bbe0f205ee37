"""The folder of files and jobs: its names, its bounds, and its end."""

import os
from contextlib import ExitStack

import pytest

from bei.errors import Invalid, NotFound, Overloaded, SetupError, TooLarge
from bei.jobs import records, store
from tests.support.stored_jobs import Clock, line, ordered, store_in, stored


def test_a_file_is_there_once_it_is_whole(tmp_path):
    found = store_in(tmp_path)
    with pytest.raises(RuntimeError), found.upload() as upload:
        upload.write(b"half of it")
        raise RuntimeError("the client left")
    assert (found.files(), found.used()) == ([], 0)
    kept = stored(found, b"all of it\n")
    assert (found.files(), found.file(kept.id), found.content(kept.id).read_bytes()) == ([kept], kept, b"all of it\n")
    assert store_in(tmp_path).file(kept.id) == kept  # for another process, too
    found.delete(kept.id)
    assert (found.files(), found.used()) == ([], 0)
    with pytest.raises(NotFound, match="it was never here, was deleted or has expired"):
        found.file(kept.id)


@pytest.mark.parametrize("id", ["", "..", "../lock", "file-", "file-" + "0" * 32 + ".json", "batch_x/../..", "file-\0"])
def test_a_name_leads_nowhere_else(tmp_path, id):
    found = store_in(tmp_path)
    for look in (found.file, found.delete, found.job, found.cancel):
        with pytest.raises(NotFound):
            look(id)


def test_ids_are_not_guessed():
    ids = {records.new_id("file-") for _ in range(100)}
    assert len(ids) == 100 and all(map(records.is_id, ids))


def test_a_damaged_record_is_none(tmp_path):
    found = store_in(tmp_path)
    kept, job = stored(found, b"a"), ordered(found, "file-x")
    (tmp_path / "batches" / "files" / f"{kept.id}.json").write_text("{")
    (found.job_folder(job.order.id).folder / "order.json").write_text("[]")
    assert (found.files(), found.jobs()) == ([], [])


def test_what_expires_is_gone(tmp_path):
    clock = Clock()
    found = store_in(tmp_path, clock=clock)
    kept, brief = stored(found, b"a"), stored(found, b"b", expires=clock.now + 10)
    assert found.files() == sorted([kept, brief], key=lambda file: file.id)
    clock.now += 10
    assert found.files() == [kept]
    with pytest.raises(NotFound):
        found.file(brief.id)
    assert found.content(brief.id).exists()
    found.sweep()
    assert found.used() == found.content(kept.id).stat().st_size + len(records_of(found, kept.id))


def records_of(found, id: str) -> bytes:
    return found.content(id).with_name(f"{id}.json").read_bytes()


def test_a_sweep_takes_what_nobody_owns_and_old_jobs(tmp_path):
    clock = Clock(os.stat(tmp_path).st_mtime)
    found = store_in(tmp_path, clock=clock)
    kept, open_job, ended = stored(found, b"a"), ordered(found, "file-x"), ordered(found, "file-x")
    progress = ended.progress
    progress.become("completed", clock.now)
    found.job_folder(ended.order.id).keep(progress)
    left = found.content(records.new_id("file-"))
    left.write_bytes(b"of a killed process")
    found.sweep()
    assert left.exists()
    clock.now += 3700
    found.sweep()
    assert not left.exists()
    assert [job.order.id for job in found.open_jobs()] == [open_job.order.id]
    clock.now += store.KEPT
    found.sweep()
    assert ([job.order.id for job in found.jobs()], found.files()) == ([open_job.order.id], [kept])


def test_an_input_that_is_needed_stays(tmp_path):
    found = store_in(tmp_path)
    kept = stored(found, line("a"))
    job = ordered(found, kept.id)
    with pytest.raises(Invalid, match=f"{kept.id} is the input of {job.order.id}, which has not ended; cancel that"):
        found.delete(kept.id)
    job.progress.become("failed", 1.0)
    found.job_folder(job.order.id).keep(job.progress)
    found.delete(kept.id)


def test_bytes_are_bounded(tmp_path, monkeypatch):
    found = store_in(tmp_path, most_bytes=10_000)
    monkeypatch.setattr(store, "_LOOK_EACH", 1000)
    kept = stored(found, b"a" * 9_000)
    with pytest.raises(TooLarge, match=r"have \d+ bytes, and may have 10000 \(max_batch_dir_bytes\); delete files"):
        stored(found, b"a" * 900)
    with pytest.raises(TooLarge), found.upload() as upload:
        for _ in range(100):
            upload.write(b"a" * 500)
    assert upload.size < 20_000
    found.delete(kept.id)
    stored(found, b"a" * 900)
    with pytest.raises(TooLarge), found.upload(9_500):  # the head of a request says it
        pass
    monkeypatch.setattr(store, "MOST_FILE_BYTES", 1000)
    with pytest.raises(TooLarge, match="`file` has more than 1000 bytes"), found.upload(1000 + 70_000):
        pass
    with pytest.raises(TooLarge, match="`file` has more than 1000 bytes"), found.upload() as upload:
        upload.write(b"a" * 1001)


def test_numbers_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MOST_RECORDS", 2)
    found = store_in(tmp_path)
    for _ in range(2):
        ordered(found, stored(found, b"a").id)
    with pytest.raises(TooLarge, match="the server has 2 files"):
        stored(found, b"a")
    with pytest.raises(TooLarge, match="the server has 2 batches"):
        ordered(found, "file-x")


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    found = store_in(tmp_path)
    (found.folder / "files").chmod(0o777)
    with pytest.raises(SetupError, match=r"setting batch_dir: .* is not ours alone"):
        store_in(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"setting batch_dir: .*: Not a directory"):
        store_in(tmp_path / "file")


def test_a_job_that_has_ended_is_not_cancelled(tmp_path):
    found = store_in(tmp_path)
    job = ordered(found, "file-x")
    assert found.cancel(job.order.id).status == "cancelling"
    assert found.cancel(job.order.id).at("cancelling") == found.clock()
    job.progress.become("cancelled", 1.0)
    found.job_folder(job.order.id).keep(job.progress)
    with pytest.raises(Invalid, match="cannot be cancelled: its status is cancelled"):
        found.cancel(job.order.id)


def test_uploads_at_once_are_bounded(tmp_path):
    found = store_in(tmp_path)
    with ExitStack() as several:
        for _ in range(16):
            several.enter_context(found.upload())
        with pytest.raises(Overloaded, match="the server takes 16 uploads at once"), found.upload():
            pass
    stored(found, b"a")
