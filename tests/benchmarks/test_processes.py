"""A server's processes, as /proc shows them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import Tree, gone
from tests.support.waiting import wait_until

PARENT = """
import subprocess, sys, time
from tests.support.waiting import wait_until
names = "-m bei.engines.worker", "answers HTTP"
sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
children = [subprocess.Popen([*sleep, name], stdout=subprocess.PIPE) for name in names]
for child in children:
    child.stdout.readline()
print(*(child.pid for child in children), flush=True)
time.sleep(60)
"""


def test_children_are_found_by_what_they_do():
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    engine, worker = map(int, process.stdout.readline().split())
    server = Tree(process, 0, 0.0, Path("log"))
    try:
        assert set(server.pids()) == {process.pid, engine, worker} and server.pids()[0] == process.pid
        assert (server.engine(), server.workers()) == (engine, [worker])
        assert server.resident() > 10
        assert server.descriptors() >= 9
        os.kill(engine, signal.SIGKILL)
        wait_until(lambda: gone(engine))
        assert (server.engine(), server.workers()) == (None, [worker])  # though its parent has not looked
    finally:
        for pid in (worker, process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
