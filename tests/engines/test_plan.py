"""The file of an engine's plan, and its key: whatever changes the plan changes the key, and nothing else does."""

import hashlib
import json
import logging
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bei.engines import plan
from bei.engines.base import Calibration, EngineOptions
from bei.engines.compute import Compute
from bei.engines.native import engine as native
from bei.engines.native.levels import LEVELS
from bei.engines.tensorrt import engine as tensorrt
from bei.engines.tensorrt.build import Recipe
from bei.engines.tensorrt.execution import GPU
from bei.errors import SetupError

ARRAYS = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 5), np.int8), "c": np.array(7, np.int64)}

BF16, INT8 = Compute("bf16"), Compute("bf16", "int8", ("layers.0.up",))


@pytest.fixture
def file(tmp_path):
    plan.write(tmp_path / "p", "key", ARRAYS.items())
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
    plan.write(tmp_path / "p", "key", [("t", np.arange(6).reshape(2, 3).T)])
    assert plan.read(tmp_path / "p", "key")["t"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_arrays_of_one_content_have_one_place(tmp_path):
    """Bytes alone count, and all of them: the third array differs in one between its ends."""
    first = np.zeros((3, plan._PIECE), np.uint8)
    other = first.copy()
    other[2, 7] = 1
    arrays = {"first": first, "again": first.view(np.int8).T, "other": other, "none": first[:0], "small": first[:1]}
    plan.write(tmp_path / "p", "key", arrays.items())
    found = plan.read(tmp_path / "p", "key")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert found["first"].ctypes.data == found["again"].ctypes.data != found["other"].ctypes.data
    assert (tmp_path / "p").stat().st_size < 8 * plan._PIECE


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


def test_one_that_cannot_be_read_after_it_was_written_is_an_error(tmp_path):
    with pytest.raises(SetupError, match="p was written and cannot be read; may others write in its folder"):
        plan.written(tmp_path / "p", "key")


def test_a_plan_is_made_once(tmp_path, caplog):
    made = []

    def make(value):
        made.append(value)
        return [("x", np.full(500_000, value, np.float32))]

    with caplog.at_level(logging.INFO, "bei"):
        for key, value in (("one", 1), ("one", 2), ("two", 3)):
            arrays = plan.cached(tmp_path / "p", key, lambda value=value: make(value))
            assert arrays["x"][0] == made[-1]
    assert made == [1, 3], "and for another key again"
    said = [re.sub(r"[\d.]+ s$", "T s", record.getMessage()) for record in caplog.records]
    assert said == [f"plan {tmp_path}/p: 2 MB, {how} in T s" for how in ("made", "mapped", "made")]


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
        native._plan(identity.checkpoint, compute, isa, "library", identity.folder)
        return identity.calls[-1][1]

    return key


def test_what_changes_a_plan_of_the_native_engine_changes_its_key(identity, native_key, monkeypatch):
    keys = [native_key(), native_key(INT8), native_key(replace(INT8, products=())), native_key(isa=LEVELS[1])]
    keys += [native_key(**{name: "other"}) for name in ("fingerprint", "spec", "sources", "version")]
    monkeypatch.setattr(native.library, "OPTIONS", ("-O1",))
    keys.append(native_key())
    assert len(set(keys)) == 9
    assert native_key() == keys[-1], "and nothing else does"
    check_name(identity)


@pytest.mark.parametrize(("compute", "peaks"), [(INT8, "peaks"), (BF16, {}), (Compute("fp32"), {})])
def test_peaks_are_seen_for_int8_only(identity, native_key, monkeypatch, compute, peaks):
    monkeypatch.setattr(native.library, "layouts", lambda loaded: f"layouts of the {loaded}")
    asked = ("library", "layouts of the library", identity.folder)
    monkeypatch.setattr(native, "input_peaks", lambda *of: "peaks" if of[1:] == asked else of)
    monkeypatch.setattr(native, "pack_checkpoint", lambda *of: of)
    native_key(compute)
    assert identity.calls[0][2]() == (identity.checkpoint, compute, asked[1], peaks)


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
        assert list(identity.calls[-1][2]()) == [("plan", "content")]
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
