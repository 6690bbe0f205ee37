"""Processes of engines that stand still, and the batches that wait in their sockets."""

import fcntl
import os
import signal
import socket
import struct
import termios
from pathlib import Path

from tests.support.waiting import wait_until


def stop(pid: int) -> None:
    """Returns once each thread of the process stands still."""
    os.kill(pid, signal.SIGSTOP)
    tasks = [task.joinpath("stat") for task in Path(f"/proc/{pid}/task").iterdir()]
    wait_until(lambda: all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks))


def is_unread(channel: socket.socket) -> bool:
    """Whether the other side has not yet read all that was sent (unix(7), SIOCOUTQ)."""
    (count,) = struct.unpack("i", fcntl.ioctl(channel, termios.TIOCOUTQ, struct.pack("i", 0)))
    return count > 0
