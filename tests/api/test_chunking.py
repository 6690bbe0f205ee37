"""Late chunking: each vector is the mean of its chunk's tokens in one reading of all."""

from dataclasses import replace

import numpy as np
import pytest

from bei.architectures.spec import Pooling
from tests.support.calls import post, refused
from tests.support.task_models import LONG, start

CHUNKS = ["the cat sat", "on the mat", "it was red"]
WHOLE = " ".join(CHUNKS)
SPANS = [[0, 11], [12, 22], [23, 33]]


def vectors(service, input, **more) -> np.ndarray:
    answer = post(service, "/v1/embeddings", {"input": input, **more})
    assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
    return np.array([item["embedding"] for item in answer["data"]])


def states(service, text: str, **more) -> np.ndarray:
    (rows,) = post(service, "/embed_all", {"inputs": text, **more})
    return np.array(rows)


def unit(rows) -> np.ndarray:
    return np.array(rows) / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_a_chunk_is_the_mean_of_its_tokens_in_the_whole(prompted):
    """Every word is a token; [CLS] stands before them."""
    service = prompted["embedding"]
    of_whole = states(service, WHOLE)
    expected = unit([of_whole[1 + 3 * i : 4 + 3 * i].mean(0) for i in range(3)])
    for found in (vectors(service, CHUNKS, late_chunking=True), vectors(service, WHOLE, chunks=SPANS)):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(vectors(service, CHUNKS), expected, atol=1e-2)


def test_a_prompt_goes_before_the_first_chunk_and_belongs_to_none(prompted):
    service = prompted["embedding"]
    of_whole = states(service, WHOLE, instruction="it ran ")
    expected = unit([of_whole[3 + 3 * i : 6 + 3 * i].mean(0) for i in range(3)])
    found = vectors(service, CHUNKS, late_chunking=True, instruction="it ran ")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_spans_may_overlap_and_leave_text_out(prompted):
    service = prompted["embedding"]
    of_whole = states(service, WHOLE)
    found = vectors(service, WHOLE, chunks=[[4, 15], [0, 33], [5, 6]])
    expected = unit([of_whole[2:5].mean(0), of_whole[1:10].mean(0), of_whole[2]])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_other_fields_hold_for_chunks_too(prompted):
    service = prompted["embedding"]
    plain = vectors(service, CHUNKS, late_chunking=True, normalize=False)
    cut = vectors(service, CHUNKS, late_chunking=True, dimensions=8)
    np.testing.assert_allclose(cut, unit(plain[:, :8]), atol=1e-5)
    signs = vectors(service, CHUNKS, late_chunking=True, output_dtype="ubinary")
    np.testing.assert_array_equal(signs, np.packbits(plain > 0, axis=1))
    bare = states(service, WHOLE, add_special_tokens=False)
    found = vectors(service, CHUNKS, late_chunking=True, add_special_tokens=False)
    np.testing.assert_allclose(found, unit([bare[3 * i : 3 * i + 3].mean(0) for i in range(3)]), atol=1e-5)
    usage = post(service, "/v1/embeddings", {"input": CHUNKS, "late_chunking": True})["usage"]
    assert usage["prompt_tokens"] == 11


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": [[5, 7]], "late_chunking": True}, "`late_chunking` needs texts, not token ids"),
        ({"input": CHUNKS, "chunks": [[0, 3]]}, "`chunks` needs one text"),
        ({"input": WHOLE, "chunks": []}, "`chunks` list should have at least 1 item"),
        ({"input": WHOLE, "chunks": [[3, 3]]}, "`chunks` 0 has no token of the text, of 33 characters"),
        ({"input": WHOLE, "chunks": [[0, 3], [2, 99]]}, "`chunks` 1 has no token of the text"),
        ({"input": WHOLE, "chunks": [[-1, 3]]}, "`chunks.0.0` should be greater than or equal to 0"),
        ({"input": WHOLE, "chunks": [[0, 3]], "late_chunking": False}, "`chunks` contradicts `late_chunking`"),
        (
            {"input": [LONG], "late_chunking": True, "truncate": True},
            "`late_chunking` cuts nothing: the texts have 122 tokens",
        ),
        (
            {"input": CHUNKS, "late_chunking": True, "truncate_prompt_tokens": 5},
            "`truncate_prompt_tokens` cannot be set with `late_chunking`, which cuts nothing",
        ),
        (
            {"input": CHUNKS, "late_chunking": True, "truncation_side": "left"},
            "`truncation_side` cannot be set with `late_chunking`",
        ),
        (
            {"input": CHUNKS, "late_chunking": True, "truncate": "START"},
            "`truncate` cannot be set with `late_chunking`",
        ),
    ],
)
def test_what_cannot_be_chunked_is_refused(prompted, body, message):
    found = refused(prompted["embedding"], "/v1/embeddings", body)
    assert (found[0], found[1][: len(message)]) == (422, message)


def test_an_empty_chunk_is_named(prompted):
    body = {"input": ["the cat", ""], "late_chunking": True}
    assert refused(prompted["embedding"], "/v1/embeddings", body) == (
        400,
        "`input` has a text without a token (input 1)",
    )


def test_a_model_that_takes_no_means_is_refused(prompted):
    checkpoint = prompted["embedding"].model.checkpoint
    service = start(replace(checkpoint, spec=replace(checkpoint.spec, pooling=Pooling(("first",)))))
    try:
        said = refused(service, "/v1/embeddings", {"input": CHUNKS, "late_chunking": True})
        assert said == (422, "`late_chunking` needs an encoder whose vectors are means of its tokens")
    finally:
        service.close()


def test_texts_in_objects(prompted):
    service = prompted["embedding"]
    expected = vectors(service, CHUNKS)
    np.testing.assert_allclose(vectors(service, [{"text": text} for text in CHUNKS]), expected, atol=1e-5)
    np.testing.assert_allclose(vectors(service, {"text": CHUNKS[0]}), expected[:1], atol=1e-5)
    for wrong in ([{"image": "x"}], [{"text": "a", "image": "x"}], {"text": 3}, [{"text": None}]):
        said = refused(service, "/v1/embeddings", {"input": wrong})
        assert said[1].startswith("`input` must be a string, a list of strings, token ids, or objects")
