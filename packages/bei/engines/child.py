"""The process of an engine: `python -m bei.engines.child FD`. FD is a socket to the server's process.

The process makes the engine that the first message names. It then runs the batches that come on other sockets, with a
thread for each, until the first socket closes. Its log lines are sent to the server.
"""

import logging
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

from bei import memory, wire
from bei.checkpoint.load import read_for
from bei.engines import choice, plan
from bei.engines.allowance import Allowance
from bei.engines.base import Batch, Engine
from bei.engines.messages import BATCHES, TO_LOAD, Failure, Load, LogLine, Refusal, Rows
from bei.errors import EngineFailed, SetupError, one_line, refusing, why
from bei.settings import Settings

log = logging.getLogger("bei")

_NICER = 5
_NICEST = 19
_FAILED = 1  # the exit status


def main(descriptor: int) -> None:
    for meant in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the server handles them: it drains first
        signal.signal(meant, signal.SIG_IGN)
    memory.give_back_large_blocks()
    choice.import_likely()  # meanwhile the server's process is imported, and reads the checkpoint
    control = socket.socket(fileno=descriptor)
    try:
        (load,) = TO_LOAD.receive(control)
    except wire.UnknownMessage as exc:
        wire.send(control, Refusal(f"the engine's process got {one_line(exc)}"))
        return
    _log_to(control, load.log_level)
    try:
        engine = _make(load)
    except SetupError as exc:
        wire.send(control, Refusal(exc.message))
        return
    except Exception as exc:
        log.exception("the engine cannot be made")
        wire.send(control, Refusal(f"the engine cannot be made: {type(exc).__name__}: {one_line(exc)}"))
        return
    wire.send(control, engine.facts)
    _, descriptors, _, _ = socket.recv_fds(control, 1, engine.facts.streams + 1)
    for number, channel in enumerate(descriptors):
        yields = number < engine.facts.streams and engine.facts.has_brief_slot
        threading.Thread(target=_serve, args=(engine, socket.socket(fileno=channel), yields), daemon=True).start()
    control.recv(1)
    plan.settle()
    os._exit(0)


def _make(load: Load) -> Engine:
    settings = Settings.model_validate_json(load.settings)
    with open(load.allowance, "r+b", 0) as file:
        allowance = Allowance(file)
    with refusing():
        return choice.create(settings, read_for(settings, Path(load.folder), load.revision), allowance)


def _serve(engine: Engine, channel: socket.socket, yields: bool) -> None:
    """Answers each batch with its rows or with its error. If it `yields`, the thread has a lower priority, so that
    brief batches and the server's process go first. Any other end than that of the channel is the process's: the server
    starts another one, where it would wait for this thread for ever."""
    try:
        if yields:
            _give_way()
        while True:
            _answer(engine, channel)
    except ConnectionError:  # the server is gone, or has closed the channel
        return
    except BaseException:
        log.exception("a thread of the engine's process failed")
        os._exit(_FAILED)


def _give_way() -> None:
    """Makes this thread nicer than its process. Only Linux gives a thread a niceness of its own, and a sandbox may
    forbid even that; without it batches take longer, but no more."""
    thread = threading.get_native_id()
    try:
        own = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(own + _NICER, _NICEST))
    except OSError as exc:
        log.debug("long batches do not give way to brief ones: %s", why(exc))


def _answer(engine: Engine, channel: socket.socket) -> None:
    """Answers one batch. It is a function so that the batch is freed before the next one comes. Raises OSError,
    ConnectionError if the other side is gone."""
    try:
        (batch,) = BATCHES.receive(channel)
    except wire.UnknownMessage as exc:
        wire.send(channel, Failure(f"the engine's process got {one_line(exc)}"))
        return
    wire.send(channel, _run(engine, batch))


def _run(engine: Engine, batch: Batch) -> Rows | Failure:
    try:
        return Rows(engine.run(batch))
    except EngineFailed as exc:
        return Failure(exc.message)
    except Exception as exc:
        log.exception("engine failed")
        return Failure(f"engine failed: {type(exc).__name__}")


def _log_to(control: socket.socket, level: int) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with suppress(OSError):
                wire.send(control, LogLine(record.levelno, self.format(record)))

    log.addHandler(Handler())
    log.setLevel(level)
    log.propagate = False


if __name__ == "__main__":
    with suppress(ConnectionError):  # the server is gone, or refused to start
        main(int(sys.argv[1]))
