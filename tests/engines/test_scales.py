"""Packed weights and their scales, by hand and by numpy alone: panels, pairs and quads; fp8 and fp4."""

import itertools
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy.linalg import hadamard

from bei.architectures.positions import Alibi
from bei.checkpoint.load import Checkpoint, read
from bei.engines import plan, small_floats
from bei.engines.compute import Compute
from bei.engines.native import library
from bei.engines.native.abi import Layout
from bei.engines.native.levels import LEVELS, X86
from bei.engines.native.pack import Packer, compute_of
from bei.engines.native.pack import hadamard as hadamard_of
from bei.engines.native.panels import Rows, interleave
from bei.engines.native.panels import pack_linear as pack_rows
from bei.engines.relative_bias import bias_by_distance
from tests.support.native_products import LOADED

PER_WORD = {"fp32": 1, "bf16": 2, "int8": 4}


BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
ONE_SIGN = 32767 / 255 - 1


def layout_of(precision: str, lanes: int, panel: int, largest_pair: float = 0) -> Layout:
    together, largest = PER_WORD[precision], 127 if precision == "int8" else 0
    return Layout(lanes, panel, word_multiple=together, row_group=together, largest=largest, largest_pair=largest_pair)


SMALL = {precision: layout_of(precision, 2, 4) for precision in PER_WORD}
WIDE = {precision: layout_of(precision, 16, 64) for precision in PER_WORD}
WITHOUT_VNNI = layout_of("int8", 2, 4, ONE_SIGN)
FP32 = Compute("fp32")
pytestmark = pytest.mark.usefixtures("packs")
WEIGHT = np.array([[11, 12, 13], [21, 22, 23], [31, 32, 33], [41, 42, 43], [51, 52, 53]], np.float32)


def pack_linear(weight: np.ndarray, bias: np.ndarray | None, *of: object) -> dict[str, np.ndarray]:
    return pack_rows(LOADED[0], Rows.of([weight]), bias, *of)


def pack_checkpoint(checkpoint: Checkpoint, compute: Compute, layouts, *peaks: object) -> list[plan.Part]:
    return list(Packer(LOADED[0], layouts).parts(checkpoint, compute, *peaks))


def arrays_of(parts: list[plan.Part]) -> dict[str, np.ndarray]:
    return dict(plan.in_memory(parts))


def test_columns_lie_in_panels_and_what_is_left_in_vectors():
    """Five columns are rounded up to six: a panel of four and one vector of two. A row of a panel is one input."""
    packed = pack_linear(WEIGHT, None, "fp32", SMALL["fp32"])
    panel = [[11, 21, 31, 41], [12, 22, 32, 42], [13, 23, 33, 43]]
    rest = [[51, 0], [52, 0], [53, 0]]
    assert packed["panels"].tolist() == [*itertools.chain(*panel), *itertools.chain(*rest)]
    assert packed["panels"].dtype == np.float32
    assert packed["bias"].tolist() == [0] * 6
    assert set(packed) == {"panels", "bias"}


def test_two_inputs_in_bf16_lie_together():
    packed = pack_linear(WEIGHT, None, "bf16", SMALL["bf16"])
    panel = [[11, 12, 21, 22, 31, 32, 41, 42], [13, 0, 23, 0, 33, 0, 43, 0]]
    rest = [[51, 52, 0, 0], [53, 0, 0, 0]]
    assert packed["panels"].astype(np.float32).tolist() == [*itertools.chain(*panel), *itertools.chain(*rest)]
    assert packed["panels"].dtype == ml_dtypes.bfloat16
    assert set(packed) == {"panels", "bias"}


def test_four_inputs_in_int8_lie_together():
    weight = np.array([[127, -64, 1, 0, 2], [254, 2, 4, 6, 0]], np.float32)
    packed = pack_linear(weight, np.array([5, 6], np.float32), "int8", SMALL["int8"])
    assert packed["panels"].tolist() == [127, -64, 1, 0, 127, 1, 2, 3, 2, 0, 0, 0, 0, 0, 0, 0]
    assert packed["panels"].dtype == np.int8
    np.testing.assert_allclose(packed["scales"], [1, 2])
    assert packed["sums"].tolist() == [66, 133]
    assert packed["bias"].tolist() == [5, 6]
    assert {packed[name].dtype for name in ("scales", "sums", "bias")} == {np.dtype(np.float32)}


def test_a_bias_is_filled_up_with_zeros():
    assert pack_linear(WEIGHT, np.arange(5, dtype=np.float32), "fp32", SMALL["fp32"])["bias"].tolist() == [
        0,
        1,
        2,
        3,
        4,
        0,
    ]


def test_a_row_of_zeros_is_zeros_at_a_scale_that_is_none():
    packed = pack_linear(np.zeros((2, 4), np.float32), None, "int8", SMALL["int8"])
    assert packed["panels"].tolist() == [0] * 8
    np.testing.assert_allclose(packed["scales"], 1e-12 / 127)


def test_half_way_is_to_the_even_one():
    packed = pack_linear(np.array([[127, 0.5, 1.5, -2.5], [1, 1, 1, 1]], np.float32), None, "int8", SMALL["int8"])
    assert packed["panels"][:4].tolist() == [127, 0, 2, -2]


@pytest.mark.parametrize(
    ("row", "scale"),
    [
        ([100, 100, 0, 0], 200 / ONE_SIGN),
        ([0, 100, 100, 0], 100 / 127),  # not the two that one instruction adds
        ([0, 0, 100, 60], 160 / ONE_SIGN),
        ([-100, -60, 0, 0], 160 / ONE_SIGN),
        ([100, -100, 0, 0], 100 / 127),  # of two signs
        ([1, 2, -90, -60], 150 / ONE_SIGN),
        ([127, 0, 0, 0], 1),
    ],
)
def test_without_vnni_two_neighbors_of_one_sign_fit_into_16_bits(row, scale):
    weight = np.array([row, [127, 0, 0, 0]], np.float32)
    packed = pack_linear(weight, None, "int8", WITHOUT_VNNI)
    np.testing.assert_allclose(packed["scales"], [scale, 1], rtol=1e-6)
    assert pack_linear(weight, None, "int8", SMALL["int8"])["scales"][0] == pytest.approx(max(map(abs, row)) / 127)


@given(st.lists(st.integers(-1000, 1000), min_size=8, max_size=8))
def test_no_sum_of_two_products_exceeds_16_bits(row):
    packed = pack_linear(np.array([row, row], np.float32), None, "int8", WITHOUT_VNNI)
    pairs = packed["panels"].reshape(2, 2, 2, 2).astype(int)  # of words, columns, pairs
    for sign in (1, -1):
        assert (255 * np.maximum(sign * pairs, 0).sum(-1) <= 32767).all()


PEAKS = np.array([4, 1, 0, 1], np.float32)


def test_inputs_that_reach_far_are_scaled_down_and_their_weights_up():
    weight = np.array([[1, 1, 1, 0], [-1, 0.25, 0.5, 0]], np.float32)
    packed = pack_linear(weight, None, "fp32", SMALL["fp32"], PEAKS)
    strength = np.sqrt(np.array([4, 1, 1e-3, 1 / 1e-5]))
    strength /= strength.mean()
    np.testing.assert_allclose(packed["input_scales"], 1 / strength, rtol=1e-5)
    made = packed["panels"].reshape(4, 2).T
    np.testing.assert_allclose(made, weight * strength, rtol=1e-5)
    x = np.array([0.5, -1, 3, 2], np.float32)
    np.testing.assert_allclose(made @ (x * packed["input_scales"]), weight @ x, rtol=1e-4)


def test_int8_has_the_scales_of_the_weights_that_were_smoothed():
    weight = np.array([[1, 1, 1, 1], [1, 1, 1, 1]], np.float32)
    packed = pack_linear(weight, None, "int8", SMALL["int8"], np.array([9, 1, 1, 1], np.float32))
    np.testing.assert_allclose(packed["input_scales"], [0.5, 1.5, 1.5, 1.5], rtol=1e-6)  # √9, 1, 1, 1 over their mean
    np.testing.assert_allclose(packed["scales"], 2 / 127, rtol=1e-6)
    assert packed["panels"].tolist() == [127, 42, 42, 42] * 2


def test_peaks_of_other_inputs_are_refused():
    """The library would read beyond them."""
    with pytest.raises(ValueError, match="peaks \\[4\\] of 3 inputs"):
        pack_linear(WEIGHT, None, "int8", SMALL["int8"], PEAKS)


def unpacked(packed, outputs: int, inputs: int, layout: Layout) -> np.ndarray:
    """[outputs, inputs], in the packed type."""
    per_word, filled = layout.row_group, -(-inputs // layout.word_multiple) * layout.word_multiple
    words, columns = filled // per_word, len(packed["bias"])
    whole = columns // layout.panel * layout.panel
    split = whole * words * per_word
    full = packed["panels"][:split].reshape(-1, words, layout.panel, per_word)
    rest = packed["panels"][split:].reshape(words, columns - whole, per_word)
    parts = [*(panel.swapaxes(0, 1) for panel in full), rest.swapaxes(0, 1)]
    return np.concatenate([part.reshape(len(part), words * per_word) for part in parts])[:outputs, :inputs]


@pytest.mark.parametrize(("lanes", "panel"), [(16, 64), (8, 16)], ids=["avx512", "avx2"])
@given(
    outputs=st.integers(1, 150),
    inputs=st.integers(1, 40),
    precision=st.sampled_from(["fp32", "bf16", "int8"]),
    words=st.sampled_from([1, 16]),
)
def test_every_weight_is_where_it_is_looked_for(lanes, panel, outputs, inputs, precision, words):
    """`words`: a kernel reads so many at once."""
    weight = np.random.default_rng(inputs).standard_normal((outputs, inputs), np.float32)
    layout = layout_of(precision, lanes, panel)
    layout.word_multiple *= words
    packed = pack_linear(weight, None, precision, layout)
    assert len(packed["bias"]) % lanes == 0 and 0 <= len(packed["bias"]) - outputs < lanes
    found = unpacked(packed, outputs, inputs, layout)
    if precision == "int8":
        scales = packed["scales"][:outputs, None]
        assert (np.abs(found * scales - weight) <= scales * 0.5001).all()
        assert packed["sums"][:outputs].tolist() == found.sum(1, dtype=int).tolist()
    else:
        np.testing.assert_array_equal(found, weight.astype(found.dtype))


@pytest.mark.parametrize(("inputs", "size"), [(48, 16), (64, 64), (6, 2), (576, 64)])
def test_inputs_are_rotated_together(inputs, size):
    """Those of a product are multiplied by the matrix, and its weights by the inverse."""
    weight = np.random.default_rng(inputs).standard_normal((5, inputs), np.float32)
    layout = layout_of("int8", 2, 4)
    packed = pack_linear(weight, None, "int8", layout, None, size)
    rotation = np.kron(hadamard(size), np.eye(inputs // size)) / size
    scales = packed["scales"][:5, None]
    assert (np.abs(unpacked(packed, 5, inputs, layout) * scales - weight @ rotation) <= scales * 0.5001).all()


@pytest.mark.parametrize(
    ("norm", "causal", "of", "inputs", "size"),
    [
        ("rms", True, "int8", 576, 64),
        ("rms", False, "int8", 48, 16),
        ("layer", True, "int8", 768, 64),
        ("layer", False, "int8", 384, 1),
        ("rms", True, "bf16", 576, 1),
        ("rms", True, "int8", 45, 1),
    ],
)
def test_the_inputs_of_language_models_are_rotated_in_int8(tiny_checkpoint, norm, causal, of, inputs, size):
    spec = tiny_checkpoint.spec
    assert hadamard_of(replace(spec, norm=replace(spec.norm, kind=norm), causal=causal), of, inputs) == size


def test_gates_and_what_they_gate_take_turns():
    rows = np.arange(1, 7, dtype=np.float32)  # gates 1, 2, 3; gated 4, 5, 6
    assert interleave(rows, 1).tolist() == [1, 4, 2, 5, 3, 6]
    assert interleave(rows, 2).tolist() == [1, 2, 4, 5, 3, 0, 6, 0]
    assert interleave(rows, 3).tolist() == [1, 2, 3, 4, 5, 6]
    pieces = [np.stack([rows[:4], -rows[:4]], 1), np.stack([rows[4:], -rows[4:]], 1)]
    packed = pack_rows(LOADED[0], Rows.of(pieces).interleaved(2), None, "fp32", layout_of("fp32", 2, 8))
    assert packed["panels"].reshape(2, 8).tolist() == [
        [1, 2, 4, 5, 3, 0, 6, 0],
        [-1, -2, -4, -5, -3, 0, -6, 0],
    ]


NUMBERS = np.array([1, 1.00390625, 1.01171875, -3.3, 1e-40, 3.4e38, np.inf, -np.inf, np.nan, 0, -0.0, 65504, 6e-8])


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("packed", "precision"), [(np.float32, "fp32"), (ml_dtypes.bfloat16, "bf16")])
def test_numbers_are_rounded_as_numpy_rounds_them(stored, packed, precision):
    """To even between two, and with the least and the largest ones, infinity and no number."""
    with np.errstate(over="ignore"):
        row = NUMBERS.astype(stored)
    found = pack_linear(np.stack([row, row]), None, precision, layout_of(precision, 1, 1))["panels"][: len(row)]
    np.testing.assert_array_equal(found.astype(np.float32), row.astype(np.float32).astype(packed).astype(np.float32))


def test_rows_of_several_types_are_packed_exactly():
    pieces = [np.array([[1.5, 2]], np.float16), np.array([[1 + 2**-20, 3]], np.float32), np.array([[4, 5]], np.float64)]
    packed = pack_rows(LOADED[0], Rows.of(pieces), None, "fp32", layout_of("fp32", 1, 4))
    assert packed["panels"].tolist() == [1.5, 1 + 2**-20, 4, 2, 3, 5]


@pytest.mark.parametrize("of", LEVELS, ids=lambda of: of.name)
def test_the_layout_of_every_level_is_known_here(of):
    """A plan may be made for another machine. A library is loaded only if its own layout is the one that is known."""
    sums_in_16_bits = of in X86 and not {"avx_vnni", "avx512_vnni"} & set(of.features)
    found = library.layouts(LOADED[0], of)
    assert all(layout.lanes and layout.panel % layout.lanes == 0 for layout in found.values())
    assert {kind: found[kind].row_group * BYTES[kind] for kind in BYTES} == {
        **dict.fromkeys(BYTES, 8 if "i8mm" in of.features else 4),
        "fp32": 4,
    }
    assert found["int8"].largest_pair == (pytest.approx(ONE_SIGN) if sums_in_16_bits else 0)


# All of a checkpoint


def tensors_of(checkpoint, packed, layout: Layout) -> dict[str, np.ndarray]:
    """The checkpoint's tensors again, from what was packed of it in fp32."""
    spec, found = checkpoint.spec, {}
    for name, array in packed.items():
        if name.endswith(".panels"):
            part = name.removesuffix(".panels")
            outputs, inputs = checkpoint.tensors[f"{part}.weight"].shape
            is_gated = spec.gated and part.endswith(".up")
            columns = len(packed[f"{part}.bias"]) if is_gated else outputs
            weight = unpacked({"panels": array, "bias": packed[f"{part}.bias"]}, columns, inputs, layout)
            bias = packed[f"{part}.bias"][:columns]
            if is_gated:
                interleaved = [
                    rows.reshape(-1, 2, layout.lanes, *rows.shape[1:]).swapaxes(0, 1) for rows in (weight, bias)
                ]
                halves = [rows.reshape(2, -1, *rows.shape[3:])[:, : outputs // 2] for rows in interleaved]
                weight, bias = (rows.reshape(outputs, *rows.shape[2:]) for rows in halves)
            found |= {f"{part}.weight": weight, f"{part}.bias": bias}
        elif f"{name.removesuffix('.bias')}.panels" not in packed:
            found[name] = array
    return found


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "electra", "modernbert", "qwen3", "gemma2"])
def test_every_tensor_of_a_checkpoint_is_packed(saved, family):
    """Positions without the offset, norms with theirs, biases by distance, gates in turns, and all else as it is."""
    checkpoint = read(saved(family)[1], "m")
    spec = checkpoint.spec
    found = tensors_of(checkpoint, arrays_of(pack_checkpoint(checkpoint, FP32, WIDE)), WIDE["fp32"])
    left_out = {"embeddings.position": spec.position_offset or 0}
    for name, tensor in checkpoint.tensors.items():
        expected = tensor[left_out.get(name, 0) :].astype(np.float32)
        if name == "relative_bias":
            expected = bias_by_distance(spec, expected)
        if re.search(r"(norm|attention_\w+|ffn_\w+)\.weight$", name):
            expected = expected + np.float32(spec.norm.offset)
        np.testing.assert_array_equal(found.pop(name), expected, err_msg=name)
        assert spec.norm.offset == (1 if family == "gemma2" else 0)
    assert all(name.endswith(".bias") and not array.any() for name, array in found.items()), "biases that it lacks"


def test_layers_that_share_their_matrices_have_them_once_in_a_plan(saved, tmp_path):
    checkpoint = read(saved("albert", num_hidden_groups=1)[1], "m")
    plan.write(tmp_path / "p", "", pack_checkpoint(checkpoint, FP32, SMALL))
    found = plan.read(tmp_path / "p", "")
    for part in ("qkv", "out", "up", "down"):
        assert len({found[f"layers.{i}.{part}.panels"].ctypes.data for i in range(3)}) == 1


def test_alibi_is_computed(tiny_checkpoint):
    spec = replace(tiny_checkpoint.spec, relative_bias=Alibi())
    packed = arrays_of(pack_checkpoint(replace(tiny_checkpoint, spec=spec), FP32, SMALL))
    np.testing.assert_array_equal(packed["relative_bias"], bias_by_distance(spec, None))


def table_of_tokens(folder: Path, stored: str, precision: str) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
    """The table of a folder whose tensors become `stored`, and its arrays in a plan."""
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.astype(stored) for name, tensor in tensors.items()}, folder / "model.safetensors")
    checkpoint = read(folder, "m")
    part = pack_checkpoint(checkpoint, compute_of(checkpoint.spec, precision), SMALL)[0]
    assert part.name == "embeddings.token"
    return checkpoint.tensors["embeddings.token"], part.make()


@pytest.mark.parametrize(
    ("stored", "precision", "packed"),
    [
        ("float32", "fp32", "float32"),
        ("float16", "fp32", "float32"),
        ("bfloat16", "fp32", "bfloat16"),
        ("float32", "bf16", "bfloat16"),
        ("float16", "bf16", "bfloat16"),
    ],
)
def test_a_table_of_tokens_has_the_engine_s_precision_or_stays_in_bf16(
    tiny_folder, tmp_path, stored, precision, packed
):
    table, found = table_of_tokens(shutil.copytree(tiny_folder, tmp_path / "stored"), stored, precision)
    assert found[""].dtype == packed
    np.testing.assert_array_equal(found[""], table.astype(packed))


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_a_table_of_tokens_in_int8_has_a_scale_for_each_row(tiny_folder, tmp_path, stored):
    table, found = table_of_tokens(shutil.copytree(tiny_folder, tmp_path / "stored"), stored, "int8")
    exact, scales = table.astype(np.float32), found["scales"]
    np.testing.assert_allclose(scales, np.maximum(np.abs(exact).max(axis=1), 1e-12) / 127, rtol=1e-6)
    np.testing.assert_array_equal(found[""], np.rint(exact / scales[:, None]).astype(np.int8))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", ml_dtypes.bfloat16), ("int8", np.int8)])
def test_a_wide_head_on_tokens_has_the_engine_s_precision_and_others_are_exact(saved, precision, dtype):
    def dtypes(checkpoint) -> dict[str, np.dtype]:
        packed = arrays_of(pack_checkpoint(checkpoint, compute_of(checkpoint.spec, precision), WIDE))
        return {name.removesuffix(".panels"): of.dtype for name, of in packed.items() if name.endswith(".panels")}

    layers = {f"layers.{i}.{part}": dtype for i in range(3) for part in ("qkv", "out", "up", "down")}
    wide = read(saved("bert", 0, "ForMaskedLM", pooling=None)[1], "m", pooling="splade")
    assert wide.spec.token_head
    dense = {name: dtype for name in ("token_head.0", "token_head.2")}
    assert dtypes(wide) == layers | dense
    labels = {"id2label": {0: "O", 1: "B-PER"}}
    narrow = read(saved("bert", 0, "ForTokenClassification", pooling=None, **labels)[1], "m")
    assert dtypes(narrow) == layers | {"token_head.0": np.float32}
    pooled = read(saved("bert", 0, "ForSequenceClassification", pooling=None, **labels)[1], "m")
    assert set(dtypes(pooled).values()) == {np.dtype(dtype), np.dtype(np.float32)}
    assert {name for name, of in dtypes(pooled).items() if of == np.float32} == {"head.0", "head.1"}
    projected = read(saved("electra")[1], "m")
    assert dtypes(projected) == layers | {"embeddings.project": dtype}


def test_peaks_are_of_the_product_that_they_name(tiny_checkpoint):
    peaks = {"layers.1.up": np.linspace(1, 9, 48, dtype=np.float32)}
    packed = arrays_of(pack_checkpoint(tiny_checkpoint, compute_of(tiny_checkpoint.spec, "int8"), WIDE, peaks))
    assert [name for name in packed if name.endswith("input_scales")] == ["layers.1.up.input_scales"]


# Eight and four bits of floating point


def test_the_scale_of_fp8_makes_the_largest_number_448():
    assert small_floats.fp8_scale(896.0) == 2
    assert small_floats.fp8_scale(0.0) == 1e-12 / 448
    numbers, scales = small_floats.fp8(np.array([[448, -224, 7], [-0.5, 0.25, 0], [0, 0, 0]], np.float64))
    np.testing.assert_allclose(scales, [1, 0.5 / 448, 1e-12 / 448], rtol=1e-6)
    assert (numbers.dtype, scales.dtype) == (ml_dtypes.float8_e4m3fn, np.float32)
    assert numbers.astype(np.float32).tolist() == [[448, -224, 7], [-448, 224, 0], [0, 0, 0]]


def test_the_scale_of_fp4_makes_the_largest_scale_448():
    assert small_floats.fp4_scale(2688.0) == 1
    assert small_floats.fp4_scale(0.0) == 1e-12 / 2688


def test_fp4_has_a_scale_for_each_16_numbers_of_a_row():
    """Blocks that reach 6 and 3 · 448: of scale 1 and of half the largest; and one of zeros."""
    blocks = np.zeros((2, 32))
    blocks[0, :4] = [6, -3, 0.5, 1]
    blocks[0, 16:20] = [2688, -448, 672, 0]
    blocks[1, 17] = 1344
    packed = small_floats.fp4(blocks)
    assert packed.scale == 1
    assert packed.scales.dtype == ml_dtypes.float8_e4m3fn
    assert packed.scales.astype(np.float32).tolist() == [[1, 448], [0, 224]]
    assert packed.nibbles.shape == (2, 16)
    assert packed.nibbles[0, :2].tolist() == [0b1101_0111, 0b0010_0001], "the first of two in the low bits"
    assert packed.nibbles[0, 8:10].tolist() == [0b1010_0111, 0b0000_0011]
    assert packed.nibbles[1, :8].tolist() == [0] * 8
    expected = blocks.copy()
    np.testing.assert_allclose(small_floats.unpack_fp4(packed), expected)


class Stored:
    """Tensors of a checkpoint: one of them is quantized already."""

    def __init__(self, quantized):
        self._quantized = quantized

    def quantized(self, name):
        return self._quantized.get(name)

    def __getitem__(self, name):
        return np.array([[448, 1]], np.float32)


def test_what_is_stored_in_fp8_stays_as_it_is():
    tensors = Stored({"a": ("numbers", "scales")})
    assert small_floats.stored_fp8(tensors, "a") == ("numbers", "scales")
    numbers, scales = small_floats.stored_fp8(tensors, "b")
    assert (numbers.astype(np.float32).tolist(), scales.tolist()) == ([[448, 1]], [1])
