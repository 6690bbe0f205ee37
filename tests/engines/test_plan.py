"""The file of an engine's plan, and its key: whatever changes the plan changes the key, and nothing else does."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bei import files
from bei.engines import plan
from bei.engines.base import Calibration, EngineOptions
from bei.engines.compute import Compute
from bei.engines.native import engine as native
from bei.engines.native.levels import LEVELS
from bei.engines.plan import Part
from bei.engines.tensorrt import engine as tensorrt
from bei.engines.tensorrt.build import Recipe
from bei.engines.tensorrt.execution import GPU

ARRAYS = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 5), np.int8), "c": np.array(7, np.int64)}

BF16, INT8, INT4 = Compute("bf16"), *(Compute("bf16", of, ("layers.0.up",)) for of in ("int8", "int4"))


def parts(arrays: dict[str, np.ndarray]) -> list[Part]:
    return [plan.ready(name, array) for name, array in arrays.items()]


@pytest.fixture
def file(tmp_path):
    plan.write(tmp_path / "p", "key", parts(ARRAYS))
    return tmp_path / "p"


# The file


def test_the_layout_is_as_it_is_documented(file):
    """Other processes and later versions read it."""
    content = file.read_bytes()
    assert content[:8] == b"BEIPLAN1"
    end = int.from_bytes(content[8:16], "little")
    table = json.loads(content[end:])
    assert table["key"] == "key"
    assert table["arrays"] == [["a", "float32", [3], 64], ["b", "int8", [2, 5], 128], ["c", "int64", [], 192]]
    assert end == 256
    assert content[64:76] == ARRAYS["a"].tobytes()
    assert content[128:138] == bytes([1] * 10)
    assert content[76:128] + content[138:192] == bytes(52 + 54), "with zeros between"


def test_arrays_that_do_not_lie_in_order_are_written_as_they_are(tmp_path):
    plan.write(tmp_path / "p", "key", parts({"t": np.arange(6).reshape(2, 3).T}))
    assert plan.read(tmp_path / "p", "key")["t"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_parts_of_one_content_have_one_place_and_are_made_once(tmp_path):
    made = []

    def part(name: str, content: object) -> Part:
        def make() -> dict[str, np.ndarray]:
            made.append(name)
            return {"x": np.full(3, len(made)), "y": np.ones(2, np.int8)}

        return Part(name, make, content)

    plan.write(tmp_path / "p", "key", [part(*of) for of in (("a", 1), ("b", 2), ("c", 1), ("d", None), ("e", None))])
    found = plan.read(tmp_path / "p", "key")
    assert sorted(made) == ["a", "b", "d", "e"]
    assert list(found) == [f"{name}.{end}" for name in "abcde" for end in "xy"]
    places = {name: found[f"{name}.x"].ctypes.data for name in "abcde"}
    assert places["a"] == places["c"]
    assert len(set(places.values())) == 4
    assert found["c.y"].tolist() == [1, 1]


def test_parts_have_their_places_in_their_order_whoever_is_first(tmp_path, monkeypatch):
    """The first part waits until the second one is made."""
    monkeypatch.setattr(plan, "available_cpus", lambda: 2)
    is_made = threading.Event()

    def second() -> dict[str, np.ndarray]:
        is_made.set()
        return {"": np.array([2])}

    plan.write(tmp_path / "p", "key", [Part("1", lambda: {"": np.array([is_made.wait(60)])}), Part("2", second)])
    found = plan.read(tmp_path / "p", "key")
    assert [found[name].item() for name in ("1", "2")] == [True, 2]
    assert found["1"].ctypes.data < found["2"].ctypes.data


def test_a_part_that_cannot_be_made_ends_those_that_wait_for_their_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "available_cpus", lambda: 2)
    is_made = threading.Event()

    def first() -> dict[str, np.ndarray]:
        is_made.wait(60)
        raise RuntimeError("no memory")

    def second() -> dict[str, np.ndarray]:
        is_made.set()
        return {"": np.array([2])}

    with pytest.raises(RuntimeError, match="no memory"):
        plan.write(tmp_path / "p", "key", [Part("1", first), Part("2", second)])
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_is_mapped_and_not_to_be_written(file):
    found = plan.read(file, "key")
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in ARRAYS.items()}
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"BEIPLAN2" + content[8:],
        lambda content: content[:-1],
        lambda content: content[:15],
        lambda content: b"",
        lambda content: content.replace(b'"key"', b'"kex"', 1),
        lambda content: content[:8] + (2**63).to_bytes(8, "little") + content[16:],
        lambda content: content.replace(b'{"key": "key", "arrays"', b'["key", "key", {"rays"').replace(b"]]}", b"]]}]"),
    ],
)
def test_no_other_file_is_a_plan(file, spoil):
    file.write_bytes(spoil(file.read_bytes()))
    assert plan.read(file, "key") is None


def test_a_plan_is_made_once(tmp_path, caplog):
    made = []

    def make(value):
        made.append(value)
        return parts({"x": np.full(500_000, value, np.float32)})

    with caplog.at_level(logging.INFO, "bei"):
        for key, value in (("one", 1), ("one", 2), ("two", 3)):
            arrays = plan.cached(tmp_path / "p", key, lambda value=value: make(value))
            plan.settle()
            assert arrays["x"][0] == made[-1]
            assert [file.name for file in tmp_path.iterdir()] == ["p"]
    assert made == [1, 3], "and for another key again"
    said = [re.sub(r"[\d.]+ s$", "T s", record.getMessage()) for record in caplog.records]
    assert said == [f"plan {tmp_path}/p: 2 MB, {how} in T s" for how in ("made", "mapped", "made")]


MAKE = """
import sys
from pathlib import Path
import numpy as np
from bei import logs
from bei.engines import plan
logs.to_stderr("info")
folder, maker = Path(sys.argv[1]), sys.argv[2]
def make():
    (folder / maker).touch()
    print("makes", flush=True)
    sys.stdin.readline()
    return [plan.ready("x", np.ones(3))]
print(plan.cached(folder / "p", "key", make)["x"].tolist())
"""


@pytest.fixture
def maker(tmp_path):
    """maker(name): a process that makes a plan when it is told to, and leaves a file of its name."""
    started = []

    def start(name: str) -> subprocess.Popen:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen([sys.executable, "-c", MAKE, str(tmp_path), name], text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("dies", [False, True])
def test_of_processes_that_want_one_plan_one_makes_it_and_the_others_wait(maker, tmp_path, dies):
    """One that dies meanwhile gives way to the next."""
    first = maker("first")
    assert first.stdout.readline() == "makes\n"
    second = maker("second")
    assert f"another process makes the plan {tmp_path / 'p'}: waiting for it" in second.stderr.readline()
    if dies:
        first.kill()
    said = [process.communicate("\n", timeout=60)[0] for process in (first, second)]
    assert said == (["", "makes\n[1.0, 1.0, 1.0]\n"] if dies else ["[1.0, 1.0, 1.0]\n"] * 2)
    assert {file.name for file in tmp_path.iterdir()} == ({"first", "second", "p"} if dies else {"first", "p"})


def test_a_plan_that_is_mapped_keeps_nobody_waiting(tmp_path):
    waits = []

    def make():
        waits.append(os.open(tmp_path / ".p.unfinished", os.O_RDWR))
        return parts(ARRAYS)

    arrays = plan.cached(tmp_path / "p", "key", make)
    plan.settle()
    fcntl.flock(waits[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(waits[0])
    assert arrays["a"].tolist() == [0, 1, 2]


def test_where_files_cannot_be_locked_each_process_makes_its_own(tmp_path, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    found = plan.cached(tmp_path / "p", "key", lambda: parts(ARRAYS))
    plan.settle()
    assert found["a"].tolist() == plan.read(tmp_path / "p", "key")["a"].tolist() == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".unfinished"] == ["p"]


def test_a_volume_that_cannot_be_written_to_is_read_or_done_without(file, monkeypatch, caplog):
    """The kernel's answer to a read-only volume: root may write to any folder."""

    def refuse(*of: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.os, "open", refuse)
    with caplog.at_level(logging.WARNING, "bei"):
        assert plan.cached(file, "key", lambda: pytest.fail("it is there"))["b"].shape == (2, 5)
        assert caplog.messages == []
        found = plan.cached(file.with_name("q"), "key", lambda: parts(ARRAYS))
    assert caplog.messages == [
        f"{file.parent}: Read-only file system; its plan is made at every start, in memory",
    ]
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].ctypes.data % 64 == 0
    assert [of.name for of in file.parent.iterdir()] == ["p"]


def test_a_plan_that_cannot_come_to_the_disk_is_used_and_not_kept(tmp_path, monkeypatch, caplog):
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    found = plan.cached(tmp_path / "p", "key", lambda: parts(ARRAYS))
    plan.settle()
    assert found["a"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []
    assert caplog.messages == [f"plan {tmp_path / 'p'}: Input/output error; it is made again at the next start"]


# The hash of the sources


def test_the_hash_of_sources_is_of_names_contents_and_options(tmp_path):
    def hashed(*options: str) -> str:
        plan.source_hash.cache_clear()
        return plan.source_hash(tmp_path, *options)

    for name in ("a.py", "cpp/b.cpp", "cpp/c.h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    first = hashed("-O2")
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert hashed("-O2") == first
    seen = {first, hashed(), hashed("-O3"), hashed("-O2", "-g")}
    for name in ("a.py", "cpp/b.cpp", "cpp/c.h"):
        (tmp_path / name).write_text(f"{name} changed")
        seen.add(hashed("-O2"))
    (tmp_path / "a.py").rename(tmp_path / "d.py")
    seen.add(last := hashed("-O2"))
    assert len(seen) == 8
    (tmp_path / "notes.md").write_text("no source")
    (tmp_path / "cpp" / "b.o").write_text("no source")
    assert hashed("-O2") == last


# The keys


class Identity:
    """A checkpoint and its surroundings, as far as a key sees them; `calls` are what `plan.cached` was given."""

    def __init__(self, monkeypatch, folder):
        self.folder, self.calls = folder, []
        self.fingerprint, self.spec, self.sources, self.version = "weights", "spec", "sources", "1.0"
        tensors = SimpleNamespace(fingerprint=lambda cache: (self.fingerprint, cache))
        self.checkpoint = SimpleNamespace(tensors=tensors)
        monkeypatch.setattr(plan, "source_hash", lambda *of: (self.sources, *of))
        monkeypatch.setattr(plan, "cached", self._cached)

    def _cached(self, file, key, make):
        self.calls.append((file, key, make))
        return {"plan": "the plan"}

    def changed(self, **values):
        for name, value in values.items():
            setattr(self, name, value)


@pytest.fixture
def identity(monkeypatch, tmp_path):
    return Identity(monkeypatch, tmp_path)


def check_name(identity: Identity) -> None:
    for file, key, _ in identity.calls:
        assert re.fullmatch("[0-9a-f]{64}", key)
        assert file == identity.folder / f"{key[:32]}.plan"


@pytest.fixture
def native_key(identity, monkeypatch):
    def key(compute=BF16, isa=LEVELS[0], **changed) -> str:
        identity.changed(**changed)
        identity.checkpoint.spec = identity.spec
        monkeypatch.setattr(native, "__version__", identity.version)
        native._plan(identity.checkpoint, compute, isa, "library", identity.folder, 3)
        return identity.calls[-1][1]

    return key


def test_what_changes_a_plan_of_the_native_engine_changes_its_key(identity, native_key, monkeypatch):
    keys = [native_key(), native_key(INT8), native_key(INT4), native_key(replace(INT8, products=()))]
    keys.append(native_key(isa=LEVELS[1]))
    keys += [native_key(**{name: "other"}) for name in ("fingerprint", "spec", "sources", "version")]
    monkeypatch.setattr(native.library, "COMPILE", ("-O1",))
    keys.append(native_key())
    assert len(set(keys)) == 10
    assert native_key() == keys[-1], "and nothing else does"
    check_name(identity)


@pytest.mark.parametrize(("compute", "peaks"), [(INT8, "peaks"), (INT4, "peaks"), (BF16, {}), (Compute("fp32"), {})])
def test_peaks_are_seen_for_integers_only(identity, native_key, monkeypatch, compute, peaks):
    monkeypatch.setattr(native.library, "layouts", lambda loaded, level: f"layouts of {level.name} by the {loaded}")
    monkeypatch.setattr(native, "input_peaks", lambda *of: "peaks" if of[1:] == ("library", identity.folder, 3) else of)
    monkeypatch.setattr(native.Packer, "parts", lambda packer, *of: (packer, *of))
    native_key(compute)
    packer = native.Packer("library", f"layouts of {LEVELS[0].name} by the library")
    assert identity.calls[0][2]() == (packer, identity.checkpoint, compute, peaks)


L4 = GPU("L4", (8, 9), "580")
FP8 = Recipe("spec", Compute("bf16", "fp8", ("layers.0.up",)), (), all_seen=True)
NOTHING, UNSAID = replace(FP8, compute=BF16), Calibration()


@pytest.fixture
def tensorrt_key(identity, monkeypatch):
    def key(recipe=FP8, calibration=UNSAID, here=L4, api="TensorRT 1", **changed) -> str:
        identity.changed(**changed)
        monkeypatch.setattr(tensorrt, "__version__", identity.version)
        options = EngineOptions(calibration=calibration)
        arguments = (SimpleNamespace(name=api), identity.checkpoint, recipe, options, here)
        assert tensorrt._plan(*arguments, identity.folder) == "the plan"
        return identity.calls[-1][1]

    return key


def test_what_changes_a_plan_of_tensorrt_changes_its_key(identity, tensorrt_key):
    keys = [tensorrt_key(), tensorrt_key(replace(FP8, spec="other")), tensorrt_key(NOTHING)]
    keys += [tensorrt_key(replace(FP8, compute=replace(FP8.compute, products=())))]
    keys += [tensorrt_key(calibration=Calibration(texts=1)), tensorrt_key(api="TensorRT 2")]
    keys += [
        tensorrt_key(here=here)
        for here in (GPU("L40", (8, 9), "580"), GPU("L4", (9, 0), "580"), GPU("L4", (8, 9), "590"))
    ]
    keys += [tensorrt_key(**{name: "other"}) for name in ("fingerprint", "sources", "version")]
    assert len(set(keys)) == 12
    assert tensorrt_key() == keys[-1]
    check_name(identity)


def test_calibration_is_no_part_of_a_plan_without_quantization(tensorrt_key):
    keys = {tensorrt_key(NOTHING, calibration=Calibration(texts=n)) for n in (1, 2)}
    assert len(keys) == 1


def test_a_plan_is_built_with_what_was_learned_on_the_same_gpu(identity, tensorrt_key, monkeypatch):
    """By the same TensorRT; the timings of one build make the next one shorter."""
    builds = []

    def build(api, checkpoint, recipe, peaks, known):
        builds.append((api.name, checkpoint, recipe, peaks, known))
        return "content", b"learned %d" % len(builds)

    monkeypatch.setattr(tensorrt, "build", build)
    monkeypatch.setattr(tensorrt, "calibration_batches", lambda checkpoint, calibration: calibration.texts)
    monkeypatch.setattr(tensorrt, "input_peaks", lambda checkpoint, products, batches: {products: batches})
    other = replace(FP8, spec="other")
    wanted = [
        {},
        {"recipe": other},
        {"recipe": NOTHING},
        {"here": replace(L4, driver="590")},
        {"api": "TensorRT 2"},
    ]
    for of in wanted:
        tensorrt_key(**of)
        (part,) = identity.calls[-1][2]()
        assert (part.name, part.make()) == ("plan", {"": "content"})
    of_fp8 = {FP8.compute.products: 1024}
    assert [build[2:] for build in builds] == [
        (FP8, of_fp8, b""),
        (other, of_fp8, b"learned 1"),
        (NOTHING, {}, b"learned 2"),
        (FP8, of_fp8, b""),
        (FP8, of_fp8, b""),
    ]
    assert [build[:2] for build in builds[3:]] == [
        ("TensorRT 1", identity.checkpoint),
        ("TensorRT 2", identity.checkpoint),
    ]
    names = {hashlib.sha256(repr((here, api)).encode()).hexdigest()[:32] for here, api in ((L4, "TensorRT 1"),)}
    assert {f"{name}.timing" for name in names} <= {file.name for file in identity.folder.iterdir()}
    assert len(list(identity.folder.iterdir())) == 3
