"""An engine in a process of its own gives the same rows, whatever happens to the process."""

import gc
import os
import signal
import subprocess
import sys
import threading
from dataclasses import fields, make_dataclass
from pathlib import Path

import numpy as np
import pytest

from bei import wire
from bei.engines import choice
from bei.engines import isolated as isolated_engine
from bei.engines.base import Batch, EngineFacts
from bei.engines.interpreters import Interpreters
from bei.engines.messages import LogLine
from bei.engines.replicas import Replicas
from bei.errors import Ended, EngineDied, EngineFailed, SetupError
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.engine_processes import children
from tests.support.stopped_processes import is_unread, stop
from tests.support.waiting import LIMIT, wait_until

BATCH = Batch.pack([[5, 6, 7], [8], list(range(5, 30))])


@pytest.fixture
def settings(tiny_folder) -> Settings:
    return Settings.load(tiny_config(tiny_folder), environ={}, engine="null")


@pytest.fixture
def isolate(tiny_checkpoint, settings):
    """isolate(**settings): a loaded engine, closed after the test."""
    made = []

    def make(**more) -> Replicas:
        made.append(Replicas(settings.model_copy(update=more), Interpreters()))
        return made[-1].load(tiny_checkpoint)

    yield make
    for engine in made:
        engine.close()
    assert children() == []


def stopped_while_it_runs(engine: Replicas) -> tuple[int, threading.Thread, list]:
    """A batch in a stopped process; yields the process, the batch's thread, and its result."""
    (process,), became = children(), []

    def run() -> None:
        try:
            became.append(engine.run(BATCH))
        except (EngineFailed, Ended) as exc:
            became.append(exc)

    stop(process)
    channels = list(engine._processes[0].child.free)
    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: any(map(is_unread, channels)))
    return process, thread, became


@pytest.mark.parametrize("name", ["null", "native"])
def test_rows_and_facts_are_those_of_the_engine(isolate, settings, tiny_checkpoint, name, native_cache):
    asked = {"engine": name, "cache_dir": native_cache, "precision": "fp32"}
    isolated, own = isolate(**asked), choice.create(settings.model_copy(update=asked), tiny_checkpoint)
    assert isolated.facts == own.facts
    np.testing.assert_array_equal(isolated.run(BATCH), own.run(BATCH))
    tokens = Batch.pack([[5, 6], [7]], row_kind="tokens")
    np.testing.assert_array_equal(isolated.run(tokens), own.run(tokens))


def test_what_the_engine_refuses_is_said_in_its_words(isolate):
    with pytest.raises(SetupError, match="fp16 needs a GPU"):
        isolate(engine="native", precision="fp16")


def test_a_failure_of_the_engine_is_its_batch_s_alone(isolate):
    engine = isolate()
    with pytest.raises(EngineFailed, match="IndexError"):
        engine.run(Batch.pack([[10**6]]))
    assert engine.run(BATCH).shape == (3, 48)
    assert engine.fault is None


def test_a_batch_with_a_field_more_fails_by_its_name_and_alone(isolate):
    engine = isolate()
    names = [field.name for field in fields(Batch)]
    later = make_dataclass("Batch", [(field.name, field.type) for field in fields(Batch)] + [("adapter", str)])
    with pytest.raises(EngineFailed, match="got a message `Batch` with the unknown field `adapter`"):
        engine.run(later(*(getattr(BATCH, name) for name in names), "a"))
    assert engine.run(BATCH).shape == (3, 48)
    assert engine.fault is None


def test_an_engine_whose_facts_have_a_field_more_is_refused_by_its_name(isolate, monkeypatch):
    known = [(field.name, field.type) for field in fields(EngineFacts) if field.name != "streams"]
    monkeypatch.setattr(isolated_engine, "LOADED", wire.Reader(make_dataclass("EngineFacts", known), LogLine))
    with pytest.raises(SetupError, match="sent a message `EngineFacts` with the unknown field `streams`"):
        isolate()


def test_a_death_costs_what_ran_and_nothing_after(isolate):
    engine = isolate()
    expected = engine.run(BATCH)
    process, thread, became = stopped_while_it_runs(engine)
    os.kill(process, signal.SIGKILL)
    thread.join(LIMIT)
    assert isinstance(became[0], EngineDied)
    np.testing.assert_array_equal(engine.run(BATCH), expected)  # waits for the next process
    assert engine.fault is None
    assert children() != [process]


def test_after_too_many_deaths_it_stays_down_and_says_why(isolate):
    engine = isolate(max_engine_restarts=1)
    for _ in range(2):
        assert engine.run(BATCH).shape == (3, 48)
        (process,) = children()
        os.kill(process, signal.SIGABRT)
        wait_until(lambda: engine.fault)
    wait_until(lambda: engine.fault is not None and "in a row" in engine.fault)
    assert "2 times in a row, at last by SIGABRT" in engine.fault
    with pytest.raises(EngineFailed, match="in a row"):
        engine.run(BATCH)


UNSENDABLE = """
import os
from bei.engines import null
if os.path.exists({flag!r}):
    os.remove({flag!r})
    null.NullEngine.run = lambda self, batch: "no array"
"""


def test_a_thread_that_fails_ends_the_process_and_nobody_waits(isolate, tmp_path, monkeypatch, caplog):
    """A row that cannot be sent is one way to make it fail."""
    (tmp_path / "sitecustomize.py").write_text(UNSENDABLE.format(flag=str(tmp_path / "once")))
    (tmp_path / "once").touch()
    monkeypatch.syspath_prepend(tmp_path)
    engine = isolate()
    with pytest.raises(EngineDied):
        engine.run(BATCH)
    assert engine.run(BATCH).shape == (3, 48)  # by the next process
    assert "a thread of the engine's process failed" in caplog.text
    assert "died by exit status 1" in caplog.text


def test_an_engine_leaves_no_descriptor(isolate):
    """Without a garbage collection, which may come late: of an engine that is closed or killed, and of an interpreter
    that nobody takes."""
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        engine = isolate()
        (first,) = children()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: children() not in ([], [first]) and engine.fault is None)
        engine.run(BATCH)
        engine.close()
        with Interpreters(ahead=1):
            pass
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def test_close_ends_the_process_and_what_waits(isolate):
    engine = isolate()
    _, thread, became = stopped_while_it_runs(engine)
    engine.close()
    thread.join(LIMIT)
    assert isinstance(became[0], Ended)
    with pytest.raises(Ended):
        engine.run(BATCH)


def test_a_server_that_is_killed_leaves_no_process(tiny_folder):
    code = (
        "import sys, time; from pathlib import Path; from bei.engines.replicas import Replicas;"
        "from bei.engines.interpreters import Interpreters;"
        "from bei.checkpoint.load import read; from bei.settings import Settings;"
        "from tests.support.configs import tiny_config;"
        f"folder = Path({str(tiny_folder)!r}); settings = Settings.load(tiny_config(folder), engine='null');"
        "engine = Replicas(settings, Interpreters()).load(read(folder, 'm'));"
        "print('ready', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as server:
        assert server.stdout.readline() == b"ready\n"
        (process,) = children(server.pid)
        server.kill()
    wait_until(lambda: not Path(f"/proc/{process}").exists())
