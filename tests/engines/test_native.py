"""The native engine beyond the conformance of engines: its cache, its levels, its kernels, its threads, int8."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from bei.checkpoint.load import read
from bei.engines import choice, plan
from bei.engines.base import Batch, EngineOptions
from bei.engines.native import abi, library
from bei.engines.native.engine import NativeEngine, make_plans
from bei.engines.native.levels import ARM, X86, level, levels, named
from bei.engines.torch.engine import TorchEngine
from bei.engines.torch.linear import ACTIVATIONS
from bei.errors import EngineFailed, SetupError
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.native_products import TOLERANCE, linear_error, outlier_errors, run_linear
from tests.support.native_rows import check_rows
from tests.support.parity import cosines, sequences
from tests.support.tiny_models import ALIKE, ALL_EXPERTS, FAMILIES, VOCAB, random_model, save

ROOT = Path(__file__).parents[2]
CPP = ROOT / "packages" / "bei" / "engines" / "native" / "cpp"


@pytest.fixture
def engine(tiny_checkpoint, native_cache):
    def make(precision: str = "bf16", threads: int = 1, checkpoint=tiny_checkpoint, cache_dir=native_cache):
        return NativeEngine(checkpoint, EngineOptions(precision=precision, threads=threads, cache_dir=cache_dir))

    return make


# The plan and the cache


def test_a_plan_comes_back_and_is_aligned(tmp_path):
    arrays = {
        "a": np.arange(7, dtype=np.float32),
        "b": np.ones((3, 5), np.int8),
        "c": np.ones(2, ml_dtypes.bfloat16),
        "empty": np.empty((0, 4), np.float32),
    }
    plan.write(tmp_path / "p", "key", [plan.ready(name, array) for name, array in arrays.items()])
    found = plan.read(tmp_path / "p", "key")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert found[name].ctypes.data % 64 == 0 or not array.size
        assert not found[name].flags.writeable
    assert [file.name for file in tmp_path.iterdir()] == ["p"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_plan_that_is_not_whole_is_not_read(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("plan") / "p"
    plan.write(file, "key", [plan.ready("a", np.arange(100, dtype=np.float32))])
    whole = file.read_bytes()
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert plan.read(file, "key") is None
    file.write_bytes(data.draw(st.binary(max_size=200)))
    assert plan.read(file, "key") is None


def test_a_plan_of_another_key_is_not_read(tmp_path):
    plan.write(tmp_path / "p", "key", [])
    assert plan.read(tmp_path / "p", "another") is None
    assert plan.read(tmp_path / "missing", "key") is None


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail():
        raise KeyError("b")

    with pytest.raises(KeyError):
        plan.write(tmp_path / "p", "key", [plan.ready("a", np.ones(3)), plan.Part("b", fail)])
    with pytest.raises(KeyError):
        plan.cached(tmp_path / "p", "key", fail)
    assert list(tmp_path.iterdir()) == []


def plans(cache: Path) -> dict[str, int]:
    plan.settle()
    return {file.name: file.stat().st_mtime_ns for file in (cache / "native").glob("*.plan")}


@pytest.fixture
def compiled(native_cache, engine, tmp_path) -> Path:
    """A cache that contains only the library."""
    engine()
    (tmp_path / "native").mkdir()
    for file in (native_cache / "native").glob("*.so"):
        (tmp_path / "native" / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_the_second_start_maps_what_the_first_packed(compiled, engine):
    engine(cache_dir=compiled)
    made = plans(compiled)
    engine(cache_dir=compiled)
    assert plans(compiled) == made
    assert len(made) == 1
    engine("int8", cache_dir=compiled)
    assert len(plans(compiled)) == 2


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_plans_for_other_machines_are_those_that_they_look_for(compiled, engine, tiny_checkpoint, caplog, precision):
    options = EngineOptions(precision=precision, threads=1, cache_dir=compiled)
    make_plans(tiny_checkpoint, options, named(f"neon_i8mm, {level().name}"))
    assert len(plans(compiled)) == 2
    with caplog.at_level(logging.INFO, "bei"):
        rows = engine(precision, cache_dir=compiled).run(Batch.pack([[7, 8, 9]]))
    assert "mapped in" in caplog.text
    assert len(plans(compiled)) == 2
    np.testing.assert_array_equal(rows, engine(precision).run(Batch.pack([[7, 8, 9]])))


def test_a_level_that_there_is_not_is_named():
    with pytest.raises(SetupError, match=r"there is no level 'avx3'; there are amx, .*, neon$"):
        named("avx2,avx3")


def test_other_weights_are_packed_anew(compiled, engine, tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("changed")
    for file in tiny_folder.rglob("*.*"):
        (folder / file.relative_to(tiny_folder)).parent.mkdir(exist_ok=True)
        (folder / file.relative_to(tiny_folder)).write_bytes(file.read_bytes())
    batch = Batch.pack([[7, 8, 9]])
    before = engine(checkpoint=read(folder, "m"), cache_dir=compiled).run(batch)
    weights = folder / "model.safetensors"
    times = weights.stat()
    tensors = load_file(weights)
    tensors["embeddings.LayerNorm.bias"] += 1
    save_file(tensors, weights)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = engine(checkpoint=read(folder, "m"), cache_dir=compiled).run(batch)
    assert np.abs(before - after).max() > 0.01


def test_a_plan_cut_short_is_made_again(compiled, engine):
    batch = Batch.pack([[7, 8, 9]])
    before = engine(cache_dir=compiled).run(batch)
    plan.settle()
    (file,) = (compiled / "native").glob("*.plan")
    file.write_bytes(file.read_bytes()[:-100])
    np.testing.assert_array_equal(engine(cache_dir=compiled).run(batch), before)


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-100], lambda content: b"", lambda content: b"not ours" * 99]
)
def test_a_library_that_is_not_whole_is_compiled_again(compiled, engine, damage):
    batch = Batch.pack([[7, 8, 9]])
    before = engine(cache_dir=compiled).run(batch)
    (file,) = (compiled / "native").glob(f"bei-{level().name}-*.so")
    whole = file.read_bytes()
    file.unlink()  # it is mapped: put another in its place
    file.write_bytes(damage(whole))
    np.testing.assert_array_equal(engine(cache_dir=compiled).run(batch), before)
    assert len(file.read_bytes()) == len(whole)


def test_processes_that_start_at_once(tiny_folder, tmp_path):
    code = f"""
from pathlib import Path
from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.native.engine import NativeEngine
checkpoint = read(Path({str(tiny_folder)!r}), "m")
engine = NativeEngine(checkpoint, EngineOptions(precision="bf16", threads=1, cache_dir=Path({str(tmp_path)!r})))
print(engine.run(Batch.pack([[7, 8, 9]])).tobytes().hex())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "packages")}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(3)
    ]
    answers = {process.communicate(timeout=120)[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(answers) == 1
    kinds = sorted(file.suffix for file in (tmp_path / "native").iterdir())
    assert kinds == [".plan", ".sha256", ".so"]


def test_nothing_of_torch_is_imported(tiny_folder, native_cache):
    code = """
import json, sys
from bei import cli
from bei.serving.service import Service
from bei.settings import Settings
service = Service(Settings.load(json.loads(sys.argv[1]), engine="native", cache_dir=sys.argv[2]))
service.load()
heavy = {"torch", "transformers", "sentence_transformers", "scipy", "onnxruntime"}
sys.exit(" ".join(heavy & sys.modules.keys()) or 0)
"""
    config = json.dumps(tiny_config(tiny_folder))
    command = [sys.executable, "-c", code, config, str(native_cache)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "packages")}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_a_cache_that_cannot_be_written_is_named(tiny_checkpoint, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"file/native: Not a directory; set BEI_CACHE_DIR"):
        NativeEngine(tiny_checkpoint, EngineOptions(cache_dir=tmp_path / "file"))


def test_a_cache_that_is_whole_need_not_be_written(compiled, engine, monkeypatch):
    """As in an image whose file system is read-only."""
    batch = Batch.pack([[7, 8, 9]])
    before = engine(cache_dir=compiled).run(batch)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    for file in (compiled / "native").glob("*.sha256"):
        file.unlink()
    for writes in ("mkdir", "write_text", "replace"):
        monkeypatch.setattr(Path, writes, refuse)
    np.testing.assert_array_equal(engine(cache_dir=compiled).run(batch), before)


# Levels and what there is where one lacks


def test_the_best_level_of_an_arm_processor_is_taken():
    everything = {feature for level in ARM for feature in level.features}
    assert level(everything).name == "neon_i8mm" and level(everything).has_bf16
    assert level(everything - {"i8mm"}).name == level(everything - {"bf16"}).name == "neon_dotprod"
    assert level({"asimd"}).name == "neon" and not level({"asimd"}).has_bf16


@pytest.mark.parametrize("isa", [level for level in X86 if level not in levels()], ids=lambda level: level.name)
def test_levels_that_this_processor_lacks_compile(isa, tmp_path):
    """To code, unlike in test_cpp.py, with the int8 encoder for all three, which are one template. test_emulated.py
    tests their results."""
    sources = [path for path in CPP.rglob("*.cpp") if path.stem not in ("encoder_fp32", "encoder_bf16")]
    command = [os.environ["CXX"], "-std=c++17", "-O0", "-fPIC", f"-I{CPP}", *isa.compiler_flags]
    text = "".join(f'#include "{path}"\n' for path in sorted(sources))
    subprocess.run([*command, "-x", "c++", "-c", "-", "-o", tmp_path / "all.o"], input=text, text=True, check=True)
    assert (tmp_path / "all.o").stat().st_size > 10_000


@pytest.mark.parametrize(("nvidia", "first"), [(False, "native"), (True, "tensorrt")])
def test_what_auto_tries_first(tmp_path, monkeypatch, nvidia, first):
    monkeypatch.setattr(choice, "_NVIDIA", tmp_path if nvidia else tmp_path / "absent")
    assert choice._fastest_first(Settings.load(tiny_config(), environ={}), EngineOptions())[0] == first


def test_without_a_compiler_torch_computes(tiny_checkpoint, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(choice, "_fastest_first", lambda settings, options: ("native", "torch"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    chosen = Settings.load(tiny_config(), environ={}, cache_dir=tmp_path)
    with caplog.at_level(logging.WARNING, "bei"):
        assert choice.create(chosen, tiny_checkpoint).facts.name == "torch"
    (record,) = caplog.records
    assert "engine native does not run here: no C++ compiler (CXX=no-such-compiler)" in record.getMessage()


def test_a_compiler_that_fails_is_named(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(SetupError, match="cannot compile the native engine"):
        NativeEngine(tiny_checkpoint, EngineOptions(cache_dir=tmp_path))


def test_precisions(tiny_checkpoint, engine, native_cache):
    assert NativeEngine(tiny_checkpoint, EngineOptions(cache_dir=native_cache)).facts.precision == "bf16"
    found = engine("int8").facts
    assert (found.precision, found.quantization, found.computes_in) == ("bf16", "int8", "int8")
    with pytest.raises(SetupError, match="fp16 needs a GPU"):
        engine("fp16")
    with pytest.raises(SetupError, match="int8 needs the native engine"):
        TorchEngine(tiny_checkpoint, EngineOptions(precision="int8"))


# Kernels


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("isa", levels(), ids=lambda level: level.name)
@given(rows=st.integers(1, 70), inputs=st.integers(1, 90), outputs=st.integers(1, 150), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_linear(native_cache, isa, precision, rows, inputs, outputs, seed):
    assert linear_error(rows, inputs, outputs, seed, precision, isa, native_cache) <= TOLERANCE[precision]


@pytest.mark.parametrize("isa", levels(), ids=lambda level: level.name)
@pytest.mark.parametrize("hadamard", [2, 4, 8, 16, 32, 64])
@given(multiple=st.integers(1, 9), rows=st.integers(1, 7), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_rotated_inputs_give_the_same_product(native_cache, isa, hadamard, multiple, rows, seed):
    error = linear_error(rows, multiple * hadamard, 20, seed, "int8", isa, native_cache, hadamard)
    assert error <= TOLERANCE["int8"]


@pytest.mark.parametrize("isa", levels(), ids=lambda level: level.name)
def test_outliers_are_spread(native_cache, isa):
    plain, rotated = outlier_errors(576, 64, isa, native_cache)
    assert rotated < 0.6 * plain


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("isa", levels(), ids=lambda level: level.name)
def test_activations(native_cache, isa, activation):
    x = np.linspace(-12, 12, 4001, dtype=np.float32)[:, None]
    y = run_linear(np.ones((1, 1), np.float32), None, x, "fp32", activation, isa, native_cache / "native")
    expected = ACTIVATIONS[activation](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, expected, rtol=3e-6, atol=2e-6)


# int8


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ALIKE])
def test_int8_is_near(family, saved, engine):
    checkpoint = read(saved(family, **ALL_EXPERTS.get(family, {}))[1], family)
    batch = Batch.pack(sequences())
    exact, rounded = engine("fp32", checkpoint=checkpoint).run(batch), engine("int8", checkpoint=checkpoint).run(batch)
    assert cosines(exact, rounded).min() >= 0.97
    assert cosines(exact, rounded).mean() >= 0.995


@pytest.mark.parametrize("isa", levels(), ids=lambda level: level.name)
@pytest.mark.parametrize("sign", [1, -1])
def test_int8_does_not_saturate(native_cache, isa, sign):
    """Two products of the largest bytes exceed the 16 bits in which AVX2 adds them."""
    weight, x = np.full((20, 90), sign, np.float32), np.full((7, 90), 3, np.float32)
    x[:, 1] = 0
    y = run_linear(weight, None, x, "int8", "identity", isa, native_cache / "native")
    np.testing.assert_allclose(y, sign * 3.0 * 89, rtol=1e-2)


# Threads


@given(st.lists(st.integers(1, 64), min_size=1, max_size=40), st.sampled_from(["fp32", "bf16", "int8", "int4"]))
@settings(max_examples=30, deadline=None)
def test_a_row_is_bit_for_bit_what_it_is_alone(tiny_checkpoint, native_cache, lengths, precision):
    alone = NativeEngine(tiny_checkpoint, EngineOptions(precision=precision, threads=1, cache_dir=native_cache))
    helped = NativeEngine(tiny_checkpoint, EngineOptions(precision=precision, threads=3, cache_dir=native_cache))
    rng = np.random.default_rng(sum(lengths))
    ids = [rng.integers(len(VOCAB), size=n).tolist() for n in lengths]
    together = helped.run(Batch.pack(ids))
    np.testing.assert_array_equal(together, np.concatenate([alone.run(Batch.pack([s])) for s in ids]))


@pytest.mark.parametrize("family", ["mobilebert", "embedding_gemma2_text"])
def test_a_row_of_layers_of_other_kinds_is_what_it_is_alone(saved, native_cache, family):
    check_rows(read(saved(family)[1], family), sequences(), native_cache)


def test_a_mixture_beside_attention(saved, native_cache):
    """It reads what attention reads. No family has it; compared with torch."""
    checkpoint = read(saved("qwen3_moe", **ALL_EXPERTS["qwen3_moe"])[1], "m")
    beside = replace(checkpoint, spec=replace(checkpoint.spec, parallel=True))
    native, torch_alone = (
        kind(beside, EngineOptions(precision="fp32", threads=1, cache_dir=native_cache)).run(Batch.pack(sequences()))
        for kind in (NativeEngine, TorchEngine)
    )
    assert np.abs(native - torch_alone).max() <= 2e-5 * max(1, np.abs(torch_alone).max())


def test_long_sequences_are_shared_by_threads(tmp_path, native_cache):
    """More tokens than one chunk of queries, more chunks than threads; compared with torch and with one thread."""
    model = random_model("mpnet", max_position_embeddings=2502)
    checkpoint = read(save(tmp_path, model), "m")
    batch = Batch.pack([[i % 90 + 5 for i in range(n)] for n in (2500, 3, 1100)], row_kind="tokens")
    one, four = (
        NativeEngine(checkpoint, EngineOptions(precision="fp32", threads=n, cache_dir=native_cache)).run(batch)
        for n in (1, 4)
    )
    np.testing.assert_array_equal(one, four)
    assert np.abs(one - TorchEngine(checkpoint, EngineOptions(precision="fp32")).run(batch)).max() <= 5e-5


@pytest.mark.parametrize("family", ["deberta-v2", "xlnet"])
@pytest.mark.parametrize("isa", dict.fromkeys((level(), levels()[-1])), ids=lambda isa: isa.name)
def test_relative_positions_of_many_blocks_of_queries(saved, native_cache, family, isa):
    """More queries than meet the keys at a time; compared with torch, and with each text alone."""
    longer = {"deberta-v2": {"max_position_embeddings": 400, "conv_kernel_size": 3}}
    checkpoint = read(saved(family, **longer.get(family, {}))[1], "m")
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, len(VOCAB), size=n).tolist() for n in (400, 3, 121, 250, 1, 120)]

    def run(precision: str, ids: list[list[int]], threads: int, rows: str = "pooled") -> np.ndarray:
        options = EngineOptions(precision=precision, threads=threads, cache_dir=native_cache)
        return NativeEngine(checkpoint, options, isa=isa).run(Batch.pack(ids, row_kind=rows))

    states = run("fp32", ids, 4, "tokens")
    expected = TorchEngine(checkpoint, EngineOptions(precision="fp32")).run(Batch.pack(ids, row_kind="tokens"))
    assert np.abs(states - expected).max() <= 2e-5 * max(1, np.abs(expected).max())
    for precision in ("fp32", "bf16", "int8", "int4"):
        alone = np.concatenate([run(precision, [s], 1) for s in ids])
        np.testing.assert_array_equal(run(precision, ids, 3), alone)


def test_many_callers(engine):
    """More callers than streams: each gets its own rows."""
    shared = engine("fp32", threads=2)
    batches = [Batch.pack([[5 + i] * (1 + i), [6, 7, 8] * 20]) for i in range(24)]
    expected = [shared.run(batch) for batch in batches]
    before = threading.active_count()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for rows, of in zip(pool.map(shared.run, batches), expected, strict=True):
                np.testing.assert_array_equal(rows, of)
    assert threading.active_count() == before


# Refused models


@pytest.mark.parametrize(
    "changed",
    [
        {"input_ids": np.array([5, len(VOCAB), 7], np.int32)},
        {"input_ids": np.array([5, -1, 7], np.int32)},
        {"token_types": np.array([0, 2, 0], np.int32)},
        {"cu_seqlens": np.array([0, 0, 3], np.int32)},
        {"cu_seqlens": np.array([1, 3, 3], np.int32)},
        {"attended": np.array([0, 1], np.int32)},
        {"attended": np.array([3, 1], np.int32)},
        {"prompt_tokens": np.array([-1, 0], np.int32)},
    ],
)
def test_a_batch_that_does_not_fit_is_refused(engine, changed):
    batch = Batch.pack([[5, 6], [7]])
    with pytest.raises(EngineFailed, match="does not fit the model"):
        engine().run(replace(batch, **changed))
    assert np.isfinite(engine().run(batch)).all()


def test_a_sequence_longer_than_the_positions_is_refused(engine):
    with pytest.raises(EngineFailed, match="does not fit the model"):
        engine().run(Batch.pack([[5] * 65]))


# Sanitizers


@pytest.mark.parametrize(
    ("sanitizer", "isa"),
    [("thread", 0), *(("address,undefined", isa) for isa in sorted({0, len(levels()) - 1}))],
    ids=str,
)
def test_no_leak_no_overrun_no_race(sanitizer, isa, tmp_path):
    """A model whose arrays end exactly where the library may read no further, run from several threads."""
    program, options = tmp_path / "sanitized", levels()[isa].compiler_flags
    flags = ["-std=c++17", "-O1", "-g1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-pthread", f"-I{CPP}"]
    first, second = library.units()
    calls = f'#include "{Path(__file__).with_name("sanitized.cpp")}"\n'
    units = {tmp_path / "1.o": first, tmp_path / "2.o": second + calls}

    def compile_one(target: Path) -> None:
        command = [os.environ["CXX"], *flags, *options, "-x", "c++", "-c", "-", "-o", target]
        subprocess.run(command, input=units[target], text=True, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, units))
    subprocess.run([os.environ["CXX"], *flags, *units, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "ok\n"


def test_no_exception_leaves_the_library(tmp_path):
    """Everything that abi.h declares is noexcept, so an exception would end the process instead of unwinding through
    ctypes."""
    program = tmp_path / "throwing"
    sources = [Path(__file__).with_name("throwing.cpp"), CPP / "abi.cpp", CPP / "kernel/amx.cpp"]
    flags = ["-std=c++17", "-O0", "-pthread", f"-I{CPP}", *levels()[0].compiler_flags]
    subprocess.run([os.environ["CXX"], *flags, *sources, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    memory, unknown = (next(n for n, text in abi.ERRORS.items() if word in text) for word in ("memory", "exception"))
    lines = [[0, *[status] * 5] for status in (memory, unknown, unknown)]
    assert [list(map(int, line.split())) for line in done.stdout.splitlines()] == lines, done.stderr
    declared = re.findall(r"\bbei_\w+\([^;]*;", (CPP / "abi.h").read_text())
    assert len(declared) == 10  # of the others, bei_pack catches what it throws, and the rest throws nothing
    assert all("BEI_NOEXCEPT" in one for one in declared)
