"""When unused memory returns to the system; live/test_memory.py measures a whole server."""

import threading

from bei import memory
from bei.inflight import InFlight
from bei.memory import Trimmer
from tests.support.waiting import LIMIT

MANY = 2 << 20  # bytes


def test_what_is_large_is_told_of_once_it_is_gone():
    calm = []
    in_flight = InFlight(1 << 30, on_calm=lambda: calm.append(in_flight.held))
    with in_flight.request():
        in_flight.hold(1000)
    assert calm == [], "a small request"
    with in_flight.request():
        in_flight.hold(MANY)
        in_flight.hold(MANY)
        in_flight.hold(-MANY)
        assert calm == [], "it still holds much"
    assert calm == [0]


def test_what_is_free_goes_back_each_time_that_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(memory, "_CALM", 0.01)
    trimmed = threading.Semaphore(0)
    trimmer = Trimmer(lambda _: trimmed.release())
    assert not trimmed.acquire(timeout=0.1)
    for _ in range(2):
        trimmer.soon()
        assert trimmed.acquire(timeout=LIMIT)
    assert not trimmed.acquire(timeout=0.1)


def test_it_goes_back_however_often_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(memory, "_CALM", 0.01)
    monkeypatch.setattr(memory, "_LATEST", 0.1)
    trimmed = threading.Event()
    trimmer = Trimmer(lambda _: trimmed.set())
    for _ in range(int(LIMIT / 0.001)):
        trimmer.soon()
        if trimmed.wait(0.001):
            return
    raise AssertionError("it waited for calm")
