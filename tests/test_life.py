"""The life of a model in one process: leases, the wait for a load, and the budget."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from bei import memory
from bei.api import Call, answer
from bei.engines.null import NullEngine
from bei.errors import Expired, NotReady, Overloaded, SetupError
from bei.server import worker
from bei.serving.leases import Leases
from bei.serving.loading import Loading
from bei.serving.registry import Registry
from bei.serving.service import Service
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.gate import Gate
from tests.support.waiting import LIMIT, run, turns, until, wait_until

NEVER = float("inf")


# -- leases ------------------------------------------------------------------------------------------------------------


def test_a_lease_keeps_a_model():
    leases = Leases()
    assert not leases.take()
    leases.open()
    assert leases.take() and leases.take()
    assert not leases.close_if_idle(0)
    leases.close()
    assert not leases.take()
    assert not leases.wait(0.01)
    threading.Timer(0.02, leases.give_back).start()
    threading.Timer(0.04, leases.give_back).start()
    assert leases.wait(LIMIT)


def test_a_model_is_idle_after_its_last_lease():
    leases = Leases()
    leases.open()
    assert not leases.close_if_idle(60)
    assert leases.take()
    leases.give_back(is_use=False)
    before = leases.last_use
    assert leases.take()
    leases.give_back()
    assert leases.last_use > before
    assert leases.close_if_idle(0) and not leases.is_open


# -- waiting -----------------------------------------------------------------------------------------------------------


class Load:
    """A load that ends when it is told to."""

    def __init__(self, most: int = 100):
        self.begun = 0
        self.leases = Leases()
        self.loading = Loading("a", self.leases, most, self.begin)

    def begin(self) -> None:
        self.begun += 1

    def end(self, fault: str | None = None) -> None:
        if fault is None:
            self.leases.open()
        self.loading.finish(fault)


async def begun(load: Load, count: int, deadline: float = NEVER) -> list[asyncio.Task[bool]]:
    tasks = [asyncio.ensure_future(load.loading.wait(deadline)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


def test_requests_wait_for_one_load_and_get_leases():
    async def wait() -> None:
        load = Load()
        waiting = await begun(load, 5)
        assert (load.begun, load.loading.is_running) == (1, True)
        load.end()
        assert load.leases.count == 5  # before any of them runs
        assert await asyncio.gather(*waiting) == [True] * 5

    run(wait())


def test_too_many_waiting_requests_are_refused():
    async def wait() -> None:
        load = Load(most=3)
        waiting = await begun(load, 3)
        with pytest.raises(Overloaded, match="3 requests wait until a is loaded"):
            await load.loading.wait(NEVER)
        load.end()
        assert await asyncio.gather(*waiting) == [True] * 3

    run(wait())


def test_a_deadline_holds_while_a_model_is_loaded():
    async def wait() -> None:
        load = Load()
        with pytest.raises(Expired, match="while its model was loaded"):
            await load.loading.wait(time.monotonic() + 0.01)
        with pytest.raises(Expired):
            await load.loading.wait(time.monotonic() - 1)
        load.end()
        assert load.leases.count == 0

    run(wait())


def test_a_request_that_left_keeps_no_lease():
    async def wait() -> None:
        load = Load()
        early, late, stays = await begun(load, 3)
        early.cancel()
        await asyncio.sleep(0)
        load.end()
        await asyncio.sleep(0)  # the lease of `late` is settled, and `late` has not run
        late.cancel()
        await asyncio.gather(early, late, return_exceptions=True)
        assert await stays
        assert load.leases.count == 1

    run(wait())


def test_a_load_that_failed_is_tried_again_after_a_pause(monkeypatch):
    async def wait() -> None:
        load = Load()
        waiting = await begun(load, 2)
        load.end("its weights are broken")
        for task in waiting:
            with pytest.raises(NotReady, match="the model a cannot be loaded: its weights are broken"):
                await task
        with pytest.raises(NotReady, match="its weights are broken") as refused:
            await load.loading.wait(NEVER)
        assert (load.begun, refused.value.headers) == (1, {"retry-after": "1"})
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 1.1)
        (task,) = await begun(load, 1)
        assert load.begun == 2
        load.end("again")
        with pytest.raises(NotReady, match="again"):
            await task
        with pytest.raises(NotReady) as refused:
            await load.loading.wait(NEVER)
        assert refused.value.headers == {"retry-after": "2"}  # the pause doubles
        task = asyncio.ensure_future(load.loading.wait(NEVER, at_once=True))
        await asyncio.sleep(0)
        load.end()
        assert await task and load.begun == 3

    run(wait())


# -- memory ------------------------------------------------------------------------------------------------------------


def test_the_memory_of_a_process_is_its_own_and_the_files_that_it_maps(tmp_path):
    file = tmp_path / "plan"
    file.write_bytes(bytes(30_000_000))
    program = (
        "import mmap, sys\n"
        "own = bytearray(b'x' * 20_000_000)\n"
        f"file = open({str(file)!r}, 'rb')\n"
        "mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "print(flush=True)\nsys.stdin.read()"
    )
    processes = []
    try:
        for _ in range(2):
            processes.append(
                subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            processes[-1].stdout.readline()
        one, both = (memory.of_processes([of.pid for of in processes[:count]]) for count in (1, 2))
    finally:
        for process in processes:
            process.communicate()
    assert 50_000_000 < one < 70_000_000
    assert both - one < 35_000_000  # the file counts once
    assert memory.of_processes([processes[0].pid]) == 0


# -- the budget --------------------------------------------------------------------------------------------------------


class Sized(Service):
    """A service on the null engine, or the one that was made for it, of a size that its test sets. It loads once `go`
    is set."""

    made = None

    size = 100
    fails = False
    loads = 0

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.go = threading.Event()
        self.go.set()

    def read(self):
        self.checkpoint = self.given
        return self.given

    def load(self):
        self.loads += 1
        assert self.go.wait(LIMIT)
        if self.fails:
            raise SetupError("it is broken")
        if self.readiness.state == "unloaded":
            self.readiness.state = "loading"
        self.start(self.given, self.made or NullEngine(self.given))

    def memory(self):
        return self.size if self.loaded else 0

    @property
    def stored_bytes(self):
        return self.size


@pytest.fixture
def make_registry(tiny_checkpoint):
    made = []

    def make(count: int, **flags) -> Registry:
        services = []
        for i in range(count):
            settings = Settings.load(tiny_config(), environ={}, served_model_name=f"m{i}", **flags)
            services.append(Sized(settings))
            services[-1].given = tiny_checkpoint
        made.append(Registry(*services))
        return made[-1]

    yield make
    for registry in made:
        registry.close()


def states(registry: Registry) -> list[str]:
    return [service.state for service in registry.services]


async def ask(registry: Registry, name: str, **headers: str) -> int:
    call = Call("POST", "/embed", json.dumps({"inputs": "a", "model": name}).encode(), headers)
    return (await answer(registry, call)).status


def test_models_are_loaded_as_far_as_the_budget_reaches(make_registry):
    registry = make_registry(4, memory_budget=250)
    registry.load()
    assert states(registry) == ["ready", "ready", "unloaded", "unloaded"]
    run(registry.check())  # the others are loaded when they are asked for


def test_the_least_recently_used_model_leaves_first(make_registry):
    registry = make_registry(3, memory_budget=250, lazy=True)
    registry.load()
    assert states(registry) == ["unloaded"] * 3

    async def use() -> None:
        for name in ("m0", "m1", "m0"):
            assert await ask(registry, name) == 200
        assert states(registry) == ["ready", "ready", "unloaded"]
        assert await ask(registry, "m2") == 200
        assert states(registry) == ["ready", "unloaded", "ready"]

    run(use())


def test_a_model_that_cannot_fit_is_told_of(make_registry):
    registry = make_registry(2, memory_budget="150MB", lazy=True)
    registry.load()
    registry.services[1].size = 200_000_000

    async def use() -> None:
        assert await ask(registry, "m0") == 200
        reply = await answer(registry, Call("POST", "/embed", b'{"inputs": "a", "model": "m1"}'))
        assert reply.status == 503
        told = json.loads(reply.body)["error"]
        assert told == "the model m1 cannot be loaded: it takes 200 MB, more than the memory_budget of 150 MB"
        assert await ask(registry, "m0") == 200

    run(use())
    assert states(registry) == ["ready", "unloaded"]


def test_a_model_that_cannot_fit_does_not_stop_the_start(make_registry):
    registry = make_registry(2, memory_budget=150)
    grown = registry.services[0]
    grown.memory = lambda: 200 if grown.loaded else 0
    registry.load()
    assert states(registry) == ["unloaded", "ready"]


def test_two_models_that_exclude_one_another_both_answer(make_registry):
    """Each is loaded for the requests that wait for it, and is not unloaded before it has answered them."""
    registry = make_registry(2, memory_budget=150, lazy=True)
    registry.load()

    async def use() -> None:
        assert await asyncio.gather(*(ask(registry, f"m{i % 2}") for i in range(60))) == [200] * 60

    run(use())
    assert all(service.loads <= 3 for service in registry.services)  # once, unless a request came late


@pytest.mark.parametrize("sign", ["answer", "batch"])
def test_a_model_that_ends_has_time_as_long_as_it_answers(make_registry, monkeypatch, sign):
    registry = make_registry(1)
    registry.load()
    (service,) = registry.services
    now, waited = time.monotonic(), []
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def ended(seconds: float) -> bool:
        nonlocal now
        waited.append(seconds)
        now += seconds / 2
        if len(waited) < 5 and sign == "answer":
            service.leases.touch()
        elif len(waited) < 5:
            service.loaded.scheduler.last_success = now
        now += seconds / 2
        return False

    begun = now
    assert not service.waits(ended, 10)
    assert len(waited) == 5 and now == pytest.approx(begun + sum(waited)) and sum(waited) > 25
    assert service.waits(lambda seconds: seconds == 10, 10)


def test_requests_that_a_hanging_model_does_not_answer_are_told_its_name(make_registry, tiny_checkpoint):
    registry = make_registry(1, drain_seconds=0.05, max_batch_size=1, lazy=True)
    registry.load()
    (service,) = registry.services
    engine = service.made = Gate(tiny_checkpoint)

    async def use() -> None:
        assert await ask(registry, "m0") == 200
        engine.go.clear()
        engine.entered.clear()
        call = Call("POST", "/embed", b'{"inputs": "a"}')
        replies = [asyncio.ensure_future(answer(registry, call)) for _ in range(8)]
        await until(engine.entered.is_set)
        assert await post_life(registry, "m0", "unload") == 200
        ended = [reply for reply in await asyncio.gather(*replies[engine.facts.streams + 1 :])]
        assert {(reply.status, reply.headers["retry-after"]) for reply in ended} == {(503, "1")}
        told = {json.loads(reply.body)["error"] for reply in ended}
        assert told == {"the model m0 was unloaded before it answered this; send it again"}
        engine.go.set()
        assert {reply.status for reply in await asyncio.gather(*replies)} == {200, 503}
        assert await ask(registry, "m0") == 200

    registry.is_local = True
    run(use())


def test_a_failing_load_is_a_503_and_no_neighbor_notices(make_registry, monkeypatch):
    registry = make_registry(2, lazy=True)
    registry.load()
    registry.services[1].fails = True
    now = time.monotonic()
    monkeypatch.setattr("bei.serving.loading.time", SimpleNamespace(monotonic=lambda: now))

    async def use() -> None:
        nonlocal now
        replies = await asyncio.gather(*(ask(registry, f"m{i % 2}") for i in range(20)))
        assert replies == [200, 503] * 10
        assert await ask(registry, "m1") == 503
        assert registry.services[1].loads == 1  # it is not tried again at once
        registry.services[1].fails = False
        now += 1.1  # the pause before the next try
        assert await ask(registry, "m1") == 200

    run(use())


def test_the_deadline_of_a_request_that_waits(make_registry):
    registry = make_registry(1, lazy=True)
    registry.load()
    registry.services[0].go.clear()

    async def use() -> None:
        assert await ask(registry, "m0", **{"request-timeout-ms": "20"}) == 504
        assert await ask(registry, "m0", **{"request-timeout-ms": "never"}) == 422
        registry.services[0].go.set()
        assert await ask(registry, "m0") == 200
        assert registry.services[0].loads == 1

    run(use())


def test_an_idle_model_is_unloaded_and_loaded_again(make_registry):
    registry = make_registry(2, idle_unload=0.2)
    registry.load()
    assert [service.loads for service in registry.services] == [1, 1]
    wait_until(lambda: states(registry) == ["unloaded", "unloaded"])
    run(registry.check())
    assert run(ask(registry, "m1")) == 200
    assert registry.services[1].loads == 2


def test_a_drained_server_loads_nothing(make_registry):
    registry = make_registry(1, lazy=True)
    registry.load()
    registry.drain()
    assert run(ask(registry, "m0")) == 503
    assert registry.services[0].loads == 0
    with pytest.raises(NotReady, match="draining"):
        run(registry.check())


def test_threads_end_with_their_models(make_registry):
    registry = make_registry(2, memory_budget=150, lazy=True)
    registry.load()
    assert run(ask(registry, "m0")) == 200
    before, opened = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert run(ask(registry, "m1")) == 200
        assert run(ask(registry, "m0")) == 200
    wait_until(lambda: threading.active_count() <= before + 1)
    assert len(os.listdir("/proc/self/fd")) <= opened + 10


def remove(registry: Registry, service: Service) -> None:
    """As a SIGHUP does."""
    registry.replace([of for of in registry.services if of is not service])
    registry.keeper.drop(service)


def test_a_load_for_the_operator_ends_with_a_model_that_is_removed_meanwhile(make_registry):
    registry = make_registry(3, lazy=True)
    registry.load()
    registry.is_local = True
    removed = registry.services[0]
    removed.go.clear()

    async def load() -> int:
        loading = asyncio.ensure_future(answer(registry, Call("POST", "/models/m0/load", b"", {})))
        await until(lambda: removed.loads == 1)
        registry.replace(registry.services[1:])
        removed.go.set()
        return (await loading).status

    assert run(load()) == 404
    assert run(post_life(registry, "m0", "load")) == 404


def test_a_request_ends_with_a_model_that_is_removed_before_its_load_begins(make_registry):
    registry = make_registry(3, lazy=True, memory_budget=250)
    registry.load()
    registry.is_local = True
    removed, slow, _ = registry.services
    slow.go.clear()

    async def use() -> list[int]:
        first = asyncio.ensure_future(ask(registry, "m1"))
        await until(lambda: slow.loads == 1)
        waiting = [asyncio.ensure_future(ask(registry, "m0")), asyncio.ensure_future(post_life(registry, "m0", "load"))]
        await turns()
        await asyncio.to_thread(remove, registry, removed)
        slow.go.set()
        return [await first, *[await of for of in waiting]]

    assert run(use()) == [200, 404, 404]
    assert removed.loads == 0
    keeper = registry.keeper
    wait_until(
        lambda: not any(removed in of for of in (keeper._loadings, keeper._locks, keeper._sizes, keeper._beside))
    )


async def post_life(registry: Registry, name: str, act: str) -> int:
    return (await answer(registry, Call("POST", f"/models/{name}/{act}", b"", {}))).status


def test_a_worker_waits_for_no_model_that_is_removed(make_registry):
    registry = make_registry(2, lazy=True)
    kept, removed = registry.services
    ours, theirs = socket.socketpair()
    with ours, theirs:
        manager = worker._Manager(registry, ours, {0: kept}, {})
        manager.started.set()
        assert run(manager.wait(removed, NEVER)) is False
        run(manager.unload(removed, NEVER))
