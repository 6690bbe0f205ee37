"""The levels of instructions that do not serve on this processor. Those that it lacks run with functions in their place
(emulated.h): slow, but the same kernels as on a processor that has them."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.native.engine import NativeEngine
from bei.engines.native.levels import X86, Level, level, levels
from tests.support.native_products import TOLERANCE, linear_error
from tests.support.parity import cosines, expected_states, least_in_bf16, reference, sequences
from tests.support.tiny_models import ALIKE, ALL_EXPERTS, FAMILIES, random_model, save


def emulated(lacking: Level) -> Level:
    """With the flags of the processor's own level, without optimization that takes longer than the tests."""
    lacks = (feature for feature in lacking.features if feature not in level().features)
    header = str(Path(__file__).with_name("emulated.h"))
    emulation = ("-include", header, *(f"-DEMULATE_{feature.upper()}" for feature in lacks))
    flags = (*level().compiler_flags, "-O1", "-Wno-psabi", *emulation)
    return replace(lacking, compiler_flags=flags)


OWN = ("amx", "avx512_bf16", "avx512", "avx2")  # the other levels have nothing that one of these does not run
OTHERS = [other for other in X86 if other.name in OWN and other != level()]
RUNNABLE = [other if other in levels() else emulated(other) for other in OTHERS]
each_level = pytest.mark.parametrize("isa", RUNNABLE, ids=lambda isa: isa.name)


@each_level
@pytest.mark.parametrize("precision", TOLERANCE)
@given(rows=st.integers(1, 70), inputs=st.integers(1, 90), outputs=st.integers(1, 150), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_linear(native_cache, isa, precision, rows, inputs, outputs, seed):
    assert linear_error(rows, inputs, outputs, seed, precision, isa, native_cache) <= TOLERANCE[precision]


def is_near(family: str, cache: Path, folder: Path, isa: Level, ids: list[list[int]], expected: np.ndarray) -> None:
    """fp32 equals transformers, the others are near it, and a row alone equals the row in a batch."""
    checkpoint = read(folder, "m")

    def engine(precision: str) -> NativeEngine:
        return NativeEngine(checkpoint, EngineOptions(precision=precision, threads=1, cache_dir=cache), isa=isa)

    exact = engine("fp32")
    states = exact.run(Batch.pack(ids, row_kind="tokens"))
    assert np.abs(states - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    rows = exact.run(Batch.pack(ids))
    for precision, worst in (("bf16", least_in_bf16(family)), ("int8", 0.97), ("int4", 0.5)):
        rounded = engine(precision)
        alone = rounded.run(Batch.pack(ids[3:4]))  # in new memory
        together = rounded.run(Batch.pack(ids))
        assert cosines(rows, together).min() >= worst
        np.testing.assert_array_equal(alone, together[3:4])


@each_level
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ALIKE])
def test_families(native_cache, saved, isa, family):
    """Every word of every spec: the families in ALIKE add none (test_alike.py)."""
    model, folder = saved(family, **ALL_EXPERTS.get(family, {}))
    is_near(family, native_cache, folder, isa, sequences(), expected_states(model))


WIDE_HEADS = {
    "bert": {"hidden_size": 64, "num_attention_heads": 2},
    "modernbert": {"hidden_size": 64, "num_attention_heads": 2, "local_attention": 6},
    "qwen3": {"head_dim": 64},
    "gemma2": {"head_dim": 32, "attn_logit_softcapping": 4.0, "sliding_window": 9},
    "mpnet": {"hidden_size": 64, "num_attention_heads": 2},
    "deberta-v2": {"hidden_size": 64, "num_attention_heads": 2},
}
"""Heads of whole rows of a tile."""


@each_level
@pytest.mark.parametrize("family", WIDE_HEADS)
def test_wide_heads(native_cache, saved, isa, family):
    """More tokens than two panels of keys, among short texts."""
    ids = [*sequences(), [5 + i * i % 90 for i in range(150)]]
    model, folder = saved(family, max_position_embeddings=200, **WIDE_HEADS[family])
    is_near(
        family, native_cache, folder, isa, ids, np.concatenate([expected_states(model), reference(model, ids[-1:])])
    )


@each_level
def test_threads_take_turns(native_cache, tmp_path, isa):
    """The shapes of tiles are a thread's own, and the memory that remembers them goes from thread to thread. The last
    product of a batch has as many rows as the first of the next."""
    checkpoint = read(save(tmp_path, random_model("bert")), "m")
    options = EngineOptions(precision="bf16", threads=1, cache_dir=native_cache)
    engine, batch = NativeEngine(checkpoint, options, isa=isa), Batch.pack([[5] * 7])
    expected = engine.run(batch)
    for _ in range(2):
        with ThreadPoolExecutor(1) as another:
            np.testing.assert_array_equal(another.submit(engine.run, batch).result(), expected)
        np.testing.assert_array_equal(engine.run(batch), expected)


def test_wrong_tiles_are_refused_and_right_ones_multiply(tmp_path):
    """As the manual says: of halves the even products are summed, then the odd ones; denormals are zero."""
    source, header = (Path(__file__).with_name(name) for name in ("tiles.cpp", "emulated.h"))
    command = [
        os.environ["CXX"],
        "-std=c++17",
        "-DEMULATE_AMX_TILE",
        "-include",
        header,
        source,
        "-o",
        tmp_path / "tiles",
    ]
    subprocess.run(command, check=True)
    said = subprocess.run([tmp_path / "tiles"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [
        "palette 1 is the only one",
        "an operation that was interrupted",
        "a tile has 16 rows at most",
        "a row has 64 bytes at most",
        "rows without bytes, or bytes without rows",
        "a reserved byte of the shapes is not zero",
        "a reserved byte of the shapes is not zero",
        "nothing",
        "sums and rows differ in their rows",
        "sums and columns differ in their columns",
        "rows and columns differ in their words",
        "a tile has no shape",
        "nothing",
        "a product of one tile twice",
        "there are eight tiles",
        "a tile has no shape",
        *(str(2 * 255 * -128 + 3), "0", "0", "0"),
    ]
