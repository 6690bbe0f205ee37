"""Matrices of four bits: how they are rounded and laid out, and models that have them."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bei.checkpoint.load import Checkpoint, read
from bei.engines.base import Batch, EngineOptions
from bei.engines.compute import Compute
from bei.engines.native import library
from bei.engines.native.abi import Layout
from bei.engines.native.encoder import Encoder
from bei.engines.native.engine import NativeEngine
from bei.engines.native.levels import LEVELS, level, levels
from bei.engines.native.pack import Packer, _matrix, compute_of, operands
from bei.engines.native.panels import Rows, pack_linear
from bei.engines.plan import in_memory
from bei.engines.torch.engine import TorchEngine
from bei.errors import SetupError
from tests.support.native_products import GROUP, LOADED, codes_of, dequantized, error_of_unpacking
from tests.support.parity import cosines, least_in_bf16, sequences
from tests.support.tiny_models import ALIKE, ALL_EXPERTS, FAMILIES

pytestmark = pytest.mark.usefixtures("packs")


def layout_of(lanes: int, panel: int, together: int) -> Layout:
    return Layout(lanes, panel, word_multiple=GROUP, row_group=together)


def packed(weight: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    return pack_linear(LOADED[0], Rows.of([np.asarray(weight, np.float32)]), None, "int4", layout)


# Rounding


def test_sixteen_numbers_at_equal_distances_are_exact():
    weight = -6 + 0.5 * np.array([*range(16)] * 2, np.float32)
    found = packed(weight[None], layout_of(1, 1, 1))
    codes, scales, offsets = codes_of(found["panels"], 1, GROUP, layout_of(1, 1, 1))
    assert codes.tolist() == [[*range(16)] * 2]
    assert (scales.tolist(), offsets.tolist()) == ([[0.5]], [[-6]])
    assert set(found) == {"panels", "bias"}


@given(seed=st.integers(0, 999), inputs=st.integers(1, 200), tail=st.sampled_from([1, 3]))
@settings(max_examples=60)
def test_no_group_loses_more_than_by_its_least_and_greatest_number(seed, inputs, tail):
    """`tail`: of a normal distribution, or of one with outliers."""
    weight = np.random.default_rng(seed).standard_normal((3, inputs)).astype(np.float32) ** tail
    found = dequantized(packed(weight, layout_of(2, 4, 2)), 3, inputs, layout_of(2, 4, 2))
    for first in range(0, inputs, GROUP):
        x, y = weight[:, first : first + GROUP].astype(np.float64), found[:, first : first + GROUP]
        low, scale = (end.astype(ml_dtypes.bfloat16).astype(float) for end in (x.min(1), (x.max(1) - x.min(1)) / 15))
        low, scale = low[:, None], np.maximum(scale, 1e-12)[:, None]
        plain = np.clip(np.rint((x - low) / scale), 0, 15) * scale + low
        assert (((x - y) ** 2).sum(1) <= ((x - plain) ** 2).sum(1) * 1.001 + 1e-12).all()


def test_outliers_are_cut_where_the_others_gain():
    """One of ten times the others' size leaves them two or three codes, unless it is cut; cutting it loses more."""
    rng = np.random.default_rng(0)
    weight = rng.uniform(-1, 1, (1, GROUP)).astype(np.float32)
    weight[0, 5] = 1.3
    layout = layout_of(1, 1, 1)
    scale = codes_of(packed(weight, layout)["panels"], 1, GROUP, layout)[1][0, 0]
    assert scale < 0.97 * (1.3 + 1) / 15


@pytest.mark.parametrize("number", [0, 1.5, -3, 1e-30])
def test_equal_numbers_are_their_offset(number):
    weight = np.full((2, 70), number, np.float32)
    found = dequantized(packed(weight, layout_of(2, 4, 1)), 2, 70, layout_of(2, 4, 1))
    np.testing.assert_allclose(found, weight, rtol=2**-8, atol=1e-11)


# Layout


def test_eight_words_lie_in_one():
    """A column of floats: the scale and the offset, then codes from the lowest bits on."""
    weight = np.array([*range(16)] * 2, np.float32)
    panels = packed(weight[None], layout_of(1, 1, 1))["panels"]
    assert panels.dtype == np.uint32
    assert [f"{word:08x}" for word in panels] == ["00003f80", *["76543210", "fedcba98"] * 2]


@pytest.mark.parametrize("of", LEVELS, ids=lambda of: of.name)
@given(outputs=st.integers(1, 150), inputs=st.integers(1, 140))
@settings(max_examples=10)
def test_every_level_s_panels_have_the_same_numbers(of, outputs, inputs):
    weight = np.random.default_rng(inputs).standard_normal((outputs, inputs), np.float32)
    layout, plain = library.layouts(LOADED[0], of)["int4"], layout_of(1, 1, 1)
    assert (layout.word_multiple, layout.row_group) == (
        GROUP,
        {True: 2, False: 1}[of.has_bf16] * (2 if of.name == "neon_i8mm" else 1),
    )
    np.testing.assert_array_equal(
        dequantized(packed(weight, layout), outputs, inputs, layout),
        dequantized(packed(weight, plain), outputs, inputs, plain),
    )


# Products


@pytest.mark.parametrize("isa", levels(), ids=lambda isa: isa.name)
@given(rows=st.integers(1, 110), inputs=st.integers(1, 200), outputs=st.integers(1, 150), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_product_is_that_of_the_numbers_that_the_matrix_stands_for(native_cache, isa, rows, inputs, outputs, seed):
    assert error_of_unpacking(rows, inputs, outputs, seed, isa, native_cache) <= 2e-5


# Models


@pytest.fixture
def engine(tiny_checkpoint, native_cache):
    def make(precision: str, checkpoint=tiny_checkpoint) -> NativeEngine:
        return NativeEngine(checkpoint, EngineOptions(precision=precision, threads=1, cache_dir=native_cache))

    return make


def test_it_computes_in_bf16(engine):
    found = engine("int4").facts
    assert (found.precision, found.quantization, found.computes_in) == ("bf16", "int4", "int4")


def test_a_plan_has_its_matrices_in_four_bits_and_its_tokens_in_eight(tiny_checkpoint):
    compute = compute_of(tiny_checkpoint.spec, "int4")
    layouts = library.layouts(LOADED[0], level())
    arrays = dict(in_memory(Packer(LOADED[0], layouts).parts(tiny_checkpoint, compute)))
    assert {array.dtype for name, array in arrays.items() if name.endswith(".panels")} == {np.dtype(np.uint32)}
    assert arrays["embeddings.token"].dtype == np.int8
    assert not any(name.endswith(("panels.scales", "input_scales", ".sums")) for name in arrays)


def in_bf16(checkpoint: Checkpoint, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a plan, with matrices in bf16 of the numbers that those in int4 stand for."""
    spec, pieces, layouts = checkpoint.spec, checkpoint.tensors.pieces(), library.layouts(LOADED[0])
    found = dict(arrays)
    for name, of in operands(spec, compute_of(spec, "int4")):
        if of == "int4":
            packed = {part: arrays[f"{name}.{part}"] for part in ("panels", "bias")}
            inputs = _matrix(spec, name, pieces)[0].shape[1]
            weight = dequantized(packed, len(packed["bias"]), inputs, layouts["int4"])
            again = pack_linear(LOADED[0], Rows.of([weight]), packed["bias"], "bf16", layouts["bf16"])
            found |= {f"{name}.{part}": array for part, array in again.items()}
    return found


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ALIKE])
def test_a_model_is_that_of_the_numbers_that_its_matrices_stand_for(family, saved):
    """In bf16, which rounds these numbers a little."""
    checkpoint = read(saved(family, **ALL_EXPERTS.get(family, {}))[1], family)
    spec, batch, layouts = checkpoint.spec, Batch.pack(sequences()), library.layouts(LOADED[0])
    compute = compute_of(spec, "int4")
    arrays = dict(in_memory(Packer(LOADED[0], layouts).parts(checkpoint, compute)))
    rows = Encoder(LOADED[0], spec, compute, arrays, 1).run(batch)
    plain = Encoder(LOADED[0], spec, Compute("bf16"), in_bf16(checkpoint, arrays), 1).run(batch)
    assert cosines(rows, plain).min() >= min(0.999, least_in_bf16(family))


def test_other_engines_refuse_it_by_name(tiny_checkpoint):
    with pytest.raises(SetupError, match="int4 needs the native engine"):
        TorchEngine(tiny_checkpoint, EngineOptions(precision="int4"))
