"""Types of numbers: every family's field for each, in lists and in base64, against sentence-transformers and numpy."""

import base64

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from bei.errors import SetupError
from bei.tasks.precision import fixed_ranges
from tests.support.calls import post, refused
from tests.support.task_models import KINDS, TEXTS, start

DTYPES = {"int8": "i1", "uint8": "u1", "binary": "i1", "ubinary": "u1"}


def embeddings(service, **more) -> list:
    answer = post(service, "/v1/embeddings", {"input": TEXTS, **more})
    return [item["embedding"] for item in answer["data"]]


def decoded(rows: list[str], dtype: str) -> np.ndarray:
    return np.stack([np.frombuffer(base64.b64decode(row), dtype) for row in rows])


def quantized(service, kind: str, **more) -> np.ndarray:
    rows = np.array(embeddings(service, **more), np.float32)
    return quantize_embeddings(rows, kind, ranges=fixed_ranges(rows.shape[1]))


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("field", ["output_dtype", "embedding_type", "encoding_type"])
def test_numbers_of_fewer_bits(prompted, field, kind):
    service = prompted["embedding"]
    for more in ({}, {"dimensions": 12}):
        expected = quantized(service, kind, **more)
        found = embeddings(service, **{field: kind}, **more)
        assert all(type(number) is int for number in found[0])
        assert np.abs(np.array(found).astype(int) - expected).max() <= (1 if "int" in kind else 0)
        packed = decoded(embeddings(service, **{field: kind}, encoding_format="base64", **more), DTYPES[kind])
        np.testing.assert_array_equal(packed, found)


def test_float32_which_clients_of_vllm_send_unasked_contradicts_no_type(prompted):
    service = prompted["embedding"]
    assert embeddings(service, output_dtype="int8", embed_dtype="float32") == embeddings(service, output_dtype="int8")


@pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])
def test_cohere_s_types_beside_one_another(prompted, path):
    kinds = ["float", "base64", *DTYPES]
    found = post(prompted["embedding"], path, {"texts": TEXTS, "embedding_types": kinds})["embeddings"]
    rows = np.array(found["float"], np.float32)
    np.testing.assert_array_equal(decoded(found["base64"], "<f4"), rows)
    for kind in DTYPES:
        np.testing.assert_array_equal(found[kind], quantize_embeddings(rows, kind, ranges=fixed_ranges(rows.shape[1])))


@pytest.mark.parametrize(("kind", "dtype"), [("float16", "f2"), ("float32", "f4")])
def test_small_floats(prompted, kind, dtype):
    service = prompted["embedding"]
    rows = np.array(embeddings(service), np.float32)
    for order, name in (("<", "little"), ("<", "native"), (">", "big")):
        fields = {"embed_dtype": kind, "endianness": name, "encoding_format": "base64"}
        found = decoded(embeddings(service, **fields), order + dtype)
        np.testing.assert_allclose(found, rows.astype(dtype), atol=1e-3)
        np.testing.assert_allclose(np.array(embeddings(service, embed_dtype=kind)), found, atol=1e-3)


def test_bfloat16(prompted):
    service = prompted["embedding"]
    rows = np.array(embeddings(service), np.float32)
    for order, name in (("<", "little"), (">", "big")):
        fields = {"embed_dtype": "bfloat16", "endianness": name, "encoding_format": "base64"}
        bits = decoded(embeddings(service, **fields), order + "u2").astype(np.uint32) << 16
        np.testing.assert_allclose(bits.view(np.float32), rows, rtol=1 / 128)
        np.testing.assert_allclose(embeddings(service, embed_dtype="bfloat16"), bits.view(np.float32), rtol=1 / 128)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output_dtype": "int8", "embedding_type": "binary"}, "`embedding_type` contradicts `output_dtype`"),
        ({"output_dtype": "int8", "embed_dtype": "float16"}, "`embed_dtype` contradicts `output_dtype`"),
        ({"embedding_type": "base64", "encoding_format": "float"}, "`embedding_type` contradicts `encoding_format`"),
        ({"endianness": "big"}, "`endianness` big is that of base64"),
        ({"output_dtype": "uint8", "normalized": False}, "`normalized`: uint8 is for vectors of length 1"),
        ({"embedding_type": "int8", "embd_normalize": -1}, "`embd_normalize`: int8 is for vectors of length 1"),
        ({"output_dtype": "int4"}, "`output_dtype` should be 'float', 'int8', 'uint8', 'binary' or 'ubinary'"),
        ({"embed_dtype": "fp8_e4m3"}, "`embed_dtype` should be 'float32', 'float16' or 'bfloat16'"),
    ],
)
def test_what_cannot_be_written_is_refused(prompted, fields, message):
    found = refused(prompted["embedding"], "/v1/embeddings", {"input": "the cat", **fields})
    assert (found[0], found[1][: len(message)]) == (422, message)


def test_cohere_s_int8_is_of_length_1_too(prompted):
    body = {"texts": ["the cat"], "embedding_types": ["float", "int8"], "normalize": False}
    for path in ("/v1/embed", "/v2/embed"):
        assert refused(prompted["embedding"], path, body)[1].startswith("`normalize`: int8 is for vectors of length 1")


# -- measured ranges ---------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    return KINDS["embedding"](tmp_path / "model")


def test_the_ranges_of_a_file_are_those_of_the_answers(checkpoint, tmp_path):
    width, file = checkpoint.width, tmp_path / "ranges.npy"
    ranges = np.stack([np.linspace(-0.3, -0.1, width), np.linspace(0.1, 0.2, width)]).astype(np.float32)
    np.save(file, ranges)
    service = start(checkpoint, int8_ranges=file)
    try:
        answer = post(service, "/v2/embed", {"texts": TEXTS, "embedding_types": ["float", "int8", "uint8"]})
        rows = np.array(answer["embeddings"]["float"], np.float32)
        for kind in ("int8", "uint8"):
            np.testing.assert_array_equal(answer["embeddings"][kind], quantize_embeddings(rows, kind, ranges=ranges))
        # They are of rows of all dimensions.
        cut = np.array(embeddings(service, output_dtype="int8", dimensions=12))
        assert np.abs(cut - quantized(service, "int8", dimensions=12)).max() <= 1
    finally:
        service.close()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (np.zeros((2, 5), np.float32), r"must be float32\[2, 48\], not float32\[2, 5\]; bei build --calibrate"),
        (np.zeros((2, 48), np.int8), r"must be float32\[2, 48\], not int8"),
        (np.full((2, 48), np.nan, np.float32), "its first row must have the least values"),
        (np.stack([np.ones(48), np.zeros(48)]), "its first row must have the least values"),
        (np.array([{}]), "cannot be read"),
        (None, "cannot be read"),
        (b"\x93NUMPY", "cannot be read"),
    ],
)
def test_a_file_of_ranges_that_is_none_is_refused(checkpoint, tmp_path, made, message):
    file = tmp_path / "ranges.npy"
    if isinstance(made, bytes):
        file.write_bytes(made)
    elif made is not None:
        np.save(file, made, allow_pickle=True)
    with pytest.raises(SetupError, match=f"int8_ranges {file}.*{message}"):
        start(checkpoint, int8_ranges=file)


def test_ranges_of_a_model_without_embeddings_are_refused(tmp_path):
    checkpoint = KINDS["classifier"](tmp_path / "model")
    with pytest.raises(SetupError, match="int8_ranges is for embedding models; the task of tiny is classifier"):
        start(checkpoint, int8_ranges=tmp_path / "ranges.npy")
