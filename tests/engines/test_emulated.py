"""The levels of instructions that this processor lacks, with functions in their place (emulated.h): slow, but the same
kernels as on a processor that has them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.native.engine import NativeEngine
from bei.engines.native.levels import LEVELS, Level, level, levels
from tests.support.native_products import TOLERANCE, linear_error
from tests.support.parity import cosines, reference, sequences
from tests.support.tiny_models import ALIKE, ALL_EXPERTS, FAMILIES, TORCH_ALONE, random_model, save


def emulated(lacking: Level) -> Level:
    """With the flags of the processor's own level, without optimization that takes longer than the tests."""
    lacks = (feature for feature in lacking.features if feature not in level().features)
    header = str(Path(__file__).with_name("emulated.h"))
    emulation = ("-include", header, *(f"-DEMULATE_{feature.upper()}" for feature in lacks))
    flags = (*level().compiler_flags, "-O1", "-Wno-psabi", *emulation)
    return Level(f"{lacking.name}_emulated", lacking.features, flags)


OWN = ("avx512_bf16", "avx512")  # the other levels have nothing that one of these does not run
LACKING = [emulated(lacking) for lacking in LEVELS if lacking.name in OWN and lacking not in levels()]
each_level = pytest.mark.parametrize("isa", LACKING, ids=lambda isa: isa.name)


@each_level
@pytest.mark.parametrize("precision", TOLERANCE)
@given(rows=st.integers(1, 15), inputs=st.integers(1, 90), outputs=st.integers(1, 150), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_linear(native_cache, isa, precision, rows, inputs, outputs, seed):
    assert linear_error(rows, inputs, outputs, seed, precision, isa, native_cache) <= TOLERANCE[precision]


@each_level
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in (*TORCH_ALONE, *ALIKE)])
def test_families(native_cache, tmp_path, isa, family):
    """fp32 equals transformers, bf16 and int8 are near it, and a row alone equals the row in a batch."""
    model = random_model(family, **ALL_EXPERTS.get(family, {}))
    checkpoint, ids = read(save(tmp_path, model), family), sequences()

    def run(precision: str, ids: list[list[int]], rows: str = "pooled") -> np.ndarray:
        options = EngineOptions(precision=precision, threads=1, cache_dir=native_cache)
        return NativeEngine(checkpoint, options, isa=isa).run(Batch.pack(ids, row_kind=rows))

    expected = reference(model, ids)
    assert np.abs(run("fp32", ids, "tokens") - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    exact = run("fp32", ids)
    for precision, worst in (("bf16", 0.9995), ("int8", 0.98)):
        together = run(precision, ids)
        assert cosines(exact, together).min() >= worst
        np.testing.assert_array_equal(run(precision, ids[3:4]), together[3:4])
