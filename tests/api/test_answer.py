"""Every route through bei.api.answer, on the null engine: the requests of clients, and the details that they depend
on."""

import base64
import gzip
import json
import math
import re
import time
from dataclasses import replace
from typing import get_args

import numpy as np
import ormsgpack
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from bei import api
from bei.engines.compute import Dtype, Quantization
from bei.engines.null import NullEngine
from bei.serving.service import Service
from bei.settings import Settings
from tests.support.calls import PATHS, TEXTS, bodies, call, post
from tests.support.configs import tiny_config


@pytest.fixture(scope="module")
def service(tiny_checkpoint):
    service = Service(Settings.load(tiny_config(), environ={}, max_client_batch_size=300))
    service.start(tiny_checkpoint, NullEngine(tiny_checkpoint))
    yield service
    service.close()


# -- OpenAI ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_openai_has_every_field_that_clients_read(service, path):
    answer = post(service, path, {"model": "whatever", "input": TEXTS, "user": "u"})
    assert list(answer) == ["object", "data", "model", "usage"]
    assert [(item["object"], item["index"]) for item in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    assert answer["model"] == "tiny"
    assert answer["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert all(math.isclose(math.hypot(*item["embedding"]), 1, abs_tol=1e-5) for item in answer["data"])


def test_base64_is_little_endian_float32(service):
    floats = post(service, "/v1/embeddings", {"input": TEXTS[0]})["data"][0]["embedding"]
    text = post(service, "/v1/embeddings", {"input": TEXTS[0], "encoding_format": "base64"})["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(text), "<f4"), floats, atol=1e-7)


@pytest.mark.parametrize(
    "body",
    [
        {
            "input": "the cat",
            "encoding_format": None,
            "dimensions": None,
            "model": None,
            "user": None,
            "truncate": None,
        },
        {"input": "the cat", "dimensions": 0, "modality": "text"},
        {"input": "the cat", "prompt_name": None, "truncation_direction": "Right", "normalize": True},
        {"input": "the cat", "truncation_direction": "left", "model": "any"},
        {"input": [10, 11]},
        {"input": [[10, 11], [12]]},
        {"input": ["the cat", [10, 11]]},
    ],
)
def test_what_clients_send_is_taken(service, body):
    assert all(len(item["embedding"]) == 48 for item in post(service, "/v1/embeddings", body)["data"])


def test_dimensions(service):
    whole = np.array(post(service, "/v1/embeddings", {"input": "the cat"})["data"][0]["embedding"])
    cut = np.array(post(service, "/v1/embeddings", {"input": "the cat", "dimensions": 8})["data"][0]["embedding"])
    np.testing.assert_allclose(cut, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-5)


def test_models(service):
    for path in ("/v1/models", "/models"):
        assert json.loads(call(service, path, method="GET").body)["data"][0]["id"] == "tiny"


# -- TEI -------------------------------------------------------------------------------------------------------------


def test_embed(service):
    rows = post(service, "/embed", {"inputs": TEXTS})
    assert np.array(rows).shape == (2, 48)
    assert post(service, "/embed", {"inputs": TEXTS[0]})[0] == pytest.approx(rows[0], abs=1e-6)
    assert post(service, "/embed", {"inputs": TEXTS, "dimensions": 3, "normalize": True})[0][2:] != []
    raw = post(service, "/embed", {"inputs": TEXTS, "normalize": False})
    assert np.linalg.norm(raw[0]) != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("path", "field"), [("/embed", "inputs"), ("/embed_all", "inputs"), ("/v1/embeddings", "input")]
)
def test_large_answers_are_as_small_ones(service, path, field):
    """They are written in pieces."""
    texts = [f"the {word}" for word in ("cat", "dog", "tree")] * 60

    def rows(of: list[str]) -> list:
        answer = post(service, path, {field: of})
        return [row["embedding"] for row in answer["data"]] if path == "/v1/embeddings" else answer

    assert rows(texts) == [row for i in range(0, len(texts), 3) for row in rows(texts[i : i + 3])]


def test_embed_all_similarity_tokenize_decode(service):
    assert [len(text) for text in post(service, "/embed_all", {"inputs": TEXTS})] == [4, 5]
    body = {"inputs": {"source_sentence": "the cat", "sentences": ["the cat", "a dog"]}, "parameters": None}
    assert post(service, "/similarity", body)[0] == pytest.approx(1, abs=1e-6)
    (tokens,) = post(service, "/tokenize", {"inputs": "the cat"})
    assert [token["text"] for token in tokens] == ["[CLS]", "the", "cat", "[SEP]"]
    assert tokens[1] == {"id": 5, "text": "the", "special": False, "start": 0, "stop": 3}
    assert post(service, "/decode", {"ids": [5, 7]}) == post(service, "/decode", {"ids": [[5, 7]]}) == ["the cat"]


@pytest.mark.parametrize("path", ["/", "/invocations"])
def test_the_bare_path_reads_the_form_from_the_body(service, path):
    assert np.array(post(service, path, {"inputs": TEXTS})).shape == (2, 48)
    assert "data" in post(service, path, {"input": TEXTS})
    body = {"inputs": {"source_sentence": "the cat", "sentences": TEXTS}, "parameters": {}}
    assert len(post(service, path, body)) == 2


def test_info_is_complete_for_tei_clients(service):
    info = json.loads(call(service, "/info", method="GET").body)
    wanted = (
        "model_id model_sha model_dtype model_type max_concurrent_requests max_input_length max_batch_tokens "
        "max_batch_requests max_client_batch_size auto_truncate tokenization_workers version sha docker_label"
    )
    assert set(wanted.split()) <= set(info)
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}


@pytest.mark.parametrize("quantization", get_args(Quantization))
@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_info_names_the_numbers_that_an_engine_computes_in(start_service, tiny_checkpoint, dtype, quantization):
    engine = NullEngine(tiny_checkpoint)
    engine.facts = replace(engine.facts, precision=dtype, quantization=quantization)
    info = json.loads(call(start_service(engine), "/info", method="GET").body)
    plain = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype]
    narrow = {"int8": "int8", "int4": "int4", "fp8": "float8_e4m3fn", "fp4": "float4_e2m1fn"}
    assert info["model_dtype"] == narrow.get(quantization.split("_")[0], plain)


# -- errors ----------------------------------------------------------------------------------------------------------

BAD = [
    (b"{", 400, "malformed JSON"),
    (b"", 400, "malformed JSON"),
    (b'{"F": "\xff"}', 422, "not valid UTF-8"),
    (b"[" * 5000, 400, "malformed JSON"),
    (b"[]", 422, "the body must be a JSON object"),
    (b"3", 422, "the body must be a JSON object"),
    (b"{}", 422, "`F` is required"),
    ({"F": None}, 422, "`F` must be a string, a list of strings"),
    ({"F": 3}, 422, "`F` must be a string"),
    ({"F": [True]}, 422, "`F` must be a string"),
    ({"F": [1.5]}, 422, "`F` must be a string"),
    ({"F": ["a", None]}, 422, "`F` must be a string"),
    ({"F": []}, 400, "`F` cannot be empty"),
    ({"F": ""}, 400, "`F` cannot be empty (input 0)"),
    ({"F": ["a", ""]}, 400, "`F` cannot be empty (input 1)"),
    ({"F": [[1], []]}, 400, "`F` cannot be empty (input 1)"),
    ({"F": [[1, -5]]}, 422, "token id -5 is outside the vocabulary"),
    ({"F": [[1, 10**30]]}, 422, "is outside the vocabulary"),
    ({"F": "a", "dimensions": 49}, 422, "`dimensions` must be between 1 and 48, not 49"),
    ({"F": "a", "dimensions": -1}, 422, "`dimensions` should be greater than or equal to 0"),
    ({"F": "a", "dimensions": "3"}, 422, "`dimensions` should be a valid integer"),
    ({"F": "a", "dimensions": True}, 422, "`dimensions` should be a valid integer"),
    ({"F": "a", "normalize": "no"}, 422, "`normalize` should be a valid boolean"),
    ({"F": "a", "truncation_direction": "up"}, 422, "`truncation_direction` should be 'left', 'right'"),
    (
        {"F": "a", "prompt_name": "nope"},
        422,
        "`prompt_name` 'nope' was not found in the model's prompts. Available prompts: [",
    ),
    ({"F": "the " * 99, "truncate": False}, 422, "must have at most 64 tokens. Given: 101"),
    ({"F": ["a"] * 301}, 413, "batch size 301 > maximum allowed batch size 300"),
    (b'{"F": "a", "dimensions": NaN}', 422, "`dimensions`"),
]


@pytest.mark.parametrize(("path", "field"), [("/v1/embeddings", "input"), ("/embed", "inputs"), ("/", "inputs")])
@pytest.mark.parametrize(("body", "status", "message"), BAD)
def test_a_bad_body_has_its_status_and_names_its_field(service, path, field, body, status, message):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = call(service, path, raw.replace(b'"F"', f'"{field}"'.encode()))
    answer = json.loads(reply.body)
    assert reply.status == status
    if path.startswith("/v1"):
        assert set(answer) == {"error", "message", "detail", "type", "code"}
        assert answer["error"] == {
            **{k: answer[k] for k in ("message", "type", "code")},
            "param": answer["error"]["param"],
        }
        assert answer["code"] == status
        assert message.replace("`F`", "`input`") in answer["message"]
    else:
        assert set(answer) == {"error", "error_type"}
        assert message.replace("`F`", "`inputs`") in answer["error"]


def test_the_field_at_fault_is_a_field_of_the_answer(service):
    reply = call(service, "/v1/embeddings", {"input": "a", "dimensions": 999})
    assert json.loads(reply.body)["error"]["param"] == "dimensions"


def test_wrong_path_method_and_type(service):
    assert call(service, "/nowhere", {}).status == 404
    reply = call(service, "/embed", method="DELETE")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert call(service, "/", method="PUT").headers["allow"] == "POST, GET"
    assert call(service, "/embed", {"inputs": "a"}, content_type="application/xml").status == 415
    for kind in ("application/json; charset=utf-8", "application/x-www-form-urlencoded", "application/vnd.api+json"):
        assert call(service, "/embed", {"inputs": "a"}, content_type=kind).status == 200


def test_an_engine_that_gives_nan_is_an_error(tiny_checkpoint):
    class Broken(NullEngine):
        def run(self, batch):
            rows = super().run(batch)
            return rows * np.nan if len(batch.input_ids) > 3 else rows

    service = Service(Settings.load(tiny_config(), environ={}))
    service.start(tiny_checkpoint, Broken(tiny_checkpoint))
    reply = call(service, "/embed", {"inputs": "the cat sat"})
    assert (reply.status, json.loads(reply.body)["error_type"]) == (424, "Backend")
    service.close()


def test_a_fault_of_ours_is_a_plain_500(service, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(type(service.model), "embed", fail)
    reply = call(service, "/embed", {"inputs": "a"})
    assert reply.status == 500
    assert b"secret" not in reply.body


def test_before_ready_everything_says_503_but_liveness():
    service = Service(Settings.load(tiny_config(), environ={}))
    for path in ("/health", "/health/ready", "/v1/health/ready", "/ping", "/info"):
        assert call(service, path, method="GET").status == 503
    for path in ("/health/live", "/v1/health/live"):
        assert call(service, path, method="GET").status == 200
    reply = call(service, "/v1/embeddings", {"input": "a"})
    assert (reply.status, json.loads(reply.body)["type"]) == (503, "Unhealthy")


# -- headers ---------------------------------------------------------------------------------------------------------


def test_deadlines(service):
    body = {"inputs": "a"}
    assert call(service, "/embed", body, request_timeout_ms="0").status == 504
    assert call(service, "/embed", body, request_timeout_ms="60000").status == 200
    assert call(service, "/embed", body, request_deadline_ms=str(int(time.time() * 1000) - 5)).status == 504
    assert call(service, "/embed", body, request_deadline_ms=str(int(time.time() * 1000) + 60000)).status == 200
    reply = call(service, "/embed", body, request_timeout_ms="soon")
    assert (reply.status, "request-timeout-ms" in reply.body.decode()) == (422, True)


def test_ids_and_compute_headers(service):
    headers = call(service, "/embed", {"inputs": TEXTS}, x_request_id="r1", x_baseten_customer_request_id="c1").headers
    assert (headers["x-request-id"], headers["x-baseten-customer-request-id"]) == ("r1", "c1")
    assert (headers["x-compute-type"], headers["x-compute-tokens"], headers["x-compute-characters"]) == (
        "cpu",
        "9",
        "16",
    )
    for name in ("x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"):
        assert headers[name].isdigit()
    assert len(call(service, "/embed", b"{").headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("zstd", "zstd"),
        ("gzip, deflate", "gzip"),
        ("gzip, zstd", "zstd"),
        ("gzip;q=1.0, zstd;q=0", "gzip"),
        ("zstd; q=0.000", None),
        ("br, deflate", None),
        ("identity", None),
        ("*", None),
        ("", None),
    ],
)
def test_compressed_only_when_asked(service, accept, encoding):
    reply = call(service, "/embed", {"inputs": ["the cat"] * 200}, accept_encoding=accept)
    assert reply.headers.get("content-encoding") == encoding
    plain = {
        None: bytes,
        "gzip": gzip.decompress,
        "zstd": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
    }[encoding](reply.body)
    assert len(json.loads(plain)) == 200
    assert "content-encoding" not in call(service, "/decode", {"ids": [5]}, accept_encoding="gzip").headers


def test_msgpack_when_asked_first(service):
    body = {"input": TEXTS, "encoding_format": "float"}
    as_json = post(service, "/v1/embeddings", body, accept="application/json, application/msgpack")
    reply = call(service, "/v1/embeddings", body, accept="application/msgpack")
    assert reply.headers["content-type"] == "application/msgpack"
    unpacked = ormsgpack.unpackb(reply.body)
    assert unpacked["usage"] == as_json["usage"]
    assert unpacked["data"][1]["embedding"] == pytest.approx(as_json["data"][1]["embedding"], abs=1e-6)


# -- operations ------------------------------------------------------------------------------------------------------


def test_metrics_keep_teis_names(service):
    def counted(name: str) -> float:
        lines = call(service, "/metrics", method="GET").body.decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f'{name},model="tiny"}}'))

    before = counted('te_request_count{method="batch"'), counted('te_request_failure{err="validation"')
    post(service, "/embed", {"inputs": TEXTS})
    call(service, "/embed", {"inputs": 3})
    after = counted('te_request_count{method="batch"'), counted('te_request_failure{err="validation"')
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)
    for name in ("te_request_duration", "te_queue_size", "te_batch_next_tokens", "bei_ready"):
        assert name in call(service, "/metrics", method="GET").body.decode()


def test_the_openapi_document_is_valid(service):
    document = json.loads(call(service, "/openapi.json", method="GET").body)
    validate(document)
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {route.path for route in api.ROUTES}
    tags = [tag["name"] for tag in document["tags"]]
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert sorted({tag for operation in operations for tag in operation["tags"]}) == sorted(tags)
    assert document["paths"]["/v1/embeddings"]["post"]["tags"] == ["openai"]


def test_a_browser_gets_a_page_that_needs_nothing_from_elsewhere(service):
    page = call(service, "/docs", method="GET")
    assert page.headers["content-type"].startswith("text/html")
    assert set(re.findall(rb"https?://[^\"]+", page.body)) == {b"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page.headers["content-security-policy"]
    browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    assert call(service, "/", method="GET", **browser).body == page.body
    assert call(service, "/", method="GET", accept="*/*").body == b""


def test_head_is_get(service):
    assert call(service, "/health", method="HEAD").status == 200


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PATHS), bodies)
def test_no_body_gives_a_5xx_or_something_unserialisable(service, path, body):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = call(service, path, raw)
    assert reply.status < 500
    json.loads(reply.body)
