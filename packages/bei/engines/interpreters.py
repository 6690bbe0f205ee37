"""The interpreters of engines: each is a process that runs `bei.engines.child`, and waits for the engine to make."""

import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from bei import processes
from bei.engines.allowance import Allowance, shared_file
from bei.engines.devices import ANY, Device
from bei.settings import Settings


@dataclass(frozen=True)
class Interpreter:
    """A process, our end of the socket that it listens to, and the allowance of its engine. The process ends when the
    socket is closed. `descriptor` is its own of the allowance's file."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    allowance: Allowance
    descriptor: int

    def close(self) -> None:
        """Closes all that we hold of it, but the process."""
        self.control.close()
        self.allowance.close()


class Interpreters:
    """Starts interpreters for the devices of engines. `ahead` of them start at once and for any device, so that their
    imports run beside ours; those that nobody takes are ended when the block of this manager ends."""

    def __init__(self, ahead: int = 0):
        """Raises OSError."""
        self._ahead = [_start(ANY) for _ in range(ahead)]

    @classmethod
    def ahead_of(cls, models: Sequence[Settings]) -> "Interpreters":
        """Those of a server's start: one for each model that is loaded at once and has no device of its own."""
        return cls(sum(starts_at_once(model) and model.devices is None for model in models))

    def __enter__(self) -> "Interpreters":
        return self

    def __exit__(self, *_: object) -> None:
        while self._ahead:
            unused = self._ahead.pop()
            unused.close()
            processes.end(unused.process, 0)

    def take(self, device: Device) -> Interpreter:
        """One that nobody else takes. Raises OSError."""
        return self._ahead.pop() if self._ahead and device is ANY else _start(device)


def starts_at_once(settings: Settings) -> bool:
    """Whether a model is loaded when its server starts; otherwise it may not be needed for a long time."""
    return not settings.lazy and settings.memory_budget is None


def _start(device: Device) -> Interpreter:
    ours, theirs = socket.socketpair()
    with theirs, shared_file() as file:
        process = processes.start(
            *("bei.engines.child", theirs.fileno()),
            pass_fds=[theirs.fileno(), file.fileno()],
            variables=device.variables,
            processors=device.processors,
        )
        return Interpreter(process, ours, Allowance(file), file.fileno())
