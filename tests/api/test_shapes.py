"""The fields of bodies and of replies, one by one, without a model."""

import asyncio
import base64
import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import ormsgpack
import pytest
import zstandard
from pydantic import TypeAdapter, ValidationError

from bei.api import error_shapes, inputs, written
from bei.api import reply as replies
from bei.api.call import Call
from bei.api.fields import Body, Part, agreed
from bei.api.output import FORMS, Form
from bei.api.readings import Cut, Pairs, Reading, Scored, Vectors
from bei.api.reply import Reply, Result, finish, render
from bei.checkpoint.texts import Prompts
from bei.errors import Empty, Error, Invalid, NotReady, Overloaded, Untokenizable
from bei.serving.answers import Options, Usage
from bei.tasks.sparse import Terms

CALL = Call("POST", "/embed")
PROMPTED = SimpleNamespace(prompts=lambda: Prompts({"query": "q: ", "passage": "p: "}))


@pytest.fixture(scope="module")
def writers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


def options(kind: type[Cut], **sent) -> Options:
    return kind.model_validate(sent).options(PROMPTED, CALL)


# How texts are cut


def test_what_is_not_sent_is_the_server_s():
    for kind in (Cut, Reading, Vectors, Pairs):
        found = options(kind)
        assert (found.truncate, found.truncation_direction, found.max_tokens) == (None, None, None)
        assert (found.prompt_name, found.instruction, found.add_special_tokens) == (None, None, True)
        assert found.deadline == float("inf")


@pytest.mark.parametrize(
    ("sent", "cut", "side"),
    [
        ({"truncate": True}, True, None),
        ({"truncate": False}, False, None),
        ({"truncate": "NONE"}, False, None),
        ({"truncate": "end"}, True, "right"),
        ({"truncate": "Start"}, True, "left"),
        ({"truncation": True}, True, None),
        ({"truncation": False, "truncate": "none"}, False, None),
        ({"truncation_direction": "Left"}, None, "left"),
        ({"truncation_direction": "right", "truncate": "END"}, True, "right"),
        ({"truncation_side": "left", "truncation_direction": "left"}, None, "left"),
        ({"truncation_side": "Right"}, None, "right"),
        ({"truncate_prompt_tokens": 5}, True, None),
        ({"truncate_prompt_tokens": -1, "truncation": True}, True, None),
    ],
)
def test_whether_and_where_a_text_is_cut(sent, cut, side):
    found = options(Cut, **sent)
    assert (found.truncate, found.truncation_direction) == (cut, side)


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"truncate": True, "truncation": False}, "truncation"),
        ({"truncation": False, "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"truncate": "START", "truncation_side": "right"}, "truncate"),
        ({"truncation_direction": "left", "truncation_side": "right"}, "truncation_side"),
    ],
)
def test_two_fields_that_contradict_each_other(sent, param):
    with pytest.raises(Invalid, match=f"^`{param}` contradicts `") as caught:
        options(Cut, **sent)
    assert caught.value.param == param


@pytest.mark.parametrize(("sent", "most"), [(0, 0), (7, 7), (-1, None), (None, None)])
def test_so_many_tokens(sent, most):
    assert options(Cut, truncate_prompt_tokens=sent).max_tokens == most
    with pytest.raises(ValueError, match="greater than or equal to -1"):
        Cut(truncate_prompt_tokens=-2)


def test_special_tokens_are_left_out_where_it_is_said():
    assert [options(Cut, add_special_tokens=value).add_special_tokens for value in (False, True, None)] == [
        False,
        True,
        True,
    ]


def test_a_deadline_comes_with_every_body():
    call = Call("POST", "/embed", headers={"request-timeout-ms": "1500"}, arrived=10.0)
    assert Cut().options(PROMPTED, call).deadline == 11.5
    assert Cut(truncation=True).options(PROMPTED, call).deadline == 11.5


# Prompts


@pytest.mark.parametrize(
    ("sent", "name", "instruction"),
    [
        ({"prompt_name": "query"}, "query", None),
        ({"instruction": "it: "}, None, "it: "),
        ({"input_type": "search_query"}, "query", None),
        ({"input_type": "search_document", "prompt_name": None}, "passage", None),
        ({"task": "retrieval.query"}, "query", None),
        ({"task": None}, None, None),
    ],
)
def test_a_prompt_by_its_name_in_full_or_for_a_kind_of_text(sent, name, instruction):
    found = options(Reading, truncation=True, **sent)
    assert (found.prompt_name, found.instruction, found.truncate) == (name, instruction, True)


def test_one_prompt_at_a_time():
    with pytest.raises(Invalid, match=r"^`input_type` cannot be set with `instruction`; send one of them$") as caught:
        options(Reading, input_type="query", instruction="a")
    assert caught.value.param == "input_type"


def test_a_prompt_is_called_as_it_was_sent():
    assert Reading(task="query").name_of("prompt_name") == "task"
    assert Reading().name_of("prompt_name") == "prompt_name"
    assert Reading(task="query").name_of("inputs") == "inputs"


# Vectors and scores


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({}, {}),
        ({"dimensions": 8}, {"normalize": True, "dimensions": 8}),
        ({"output_dimension": 8, "dimensions": 0}, {"normalize": True, "dimensions": 8}),
        ({"dimensions": 0}, {"normalize": True, "dimensions": None}),
        ({"normalize": False}, {"normalize": False, "dimensions": None}),
        ({"normalized": False, "use_activation": False}, {"normalize": False, "dimensions": None}),
        ({"embd_normalize": -1}, {"normalize": False, "dimensions": None}),
        ({"embd_normalize": 2, "normalize": True}, {"normalize": True, "dimensions": None}),
        ({"normalize": None}, {"normalize": True, "dimensions": None}),
    ],
)
def test_how_vectors_are_finished(sent, expected):
    assert Vectors(**sent).finish() == expected


@pytest.mark.parametrize("sent", [{"normalize": True, "embd_normalize": -1}, {"dimensions": 8, "output_dimension": 9}])
def test_vectors_are_finished_in_one_way(sent):
    with pytest.raises(Invalid, match="contradicts"):
        Vectors(**sent).finish()


def test_dimensions_are_called_as_they_were_sent():
    assert Vectors(dimensions=8).name_of("dimensions") == "dimensions"
    assert Vectors(output_dimension=8).name_of("dimensions") == "output_dimension"


@pytest.mark.parametrize(
    ("sent", "scoring"),
    [
        ({}, None),
        ({"raw_scores": True}, "identity"),
        ({"raw_scores": False}, None),
        ({"use_activation": False}, "identity"),
        ({"use_activation": True}, None),
        ({"use_activation": True, "raw_scores": False}, None),
    ],
)
def test_how_scores_are_made(sent, scoring):
    assert Scored(**sent).scoring() == scoring


def test_pairs_have_an_instruction_and_a_limit_for_documents():
    found = options(Pairs, instruction="a", prompt_name="b", max_tokens_per_doc=7, truncation=False)
    assert (found.instruction, found.prompt_name, found.max_document_tokens, found.truncate) == ("a", "b", 7, False)
    assert options(Pairs, max_tokens_per_doc=0).max_document_tokens is None


# Fields


def test_a_field_of_another_route_is_refused_unless_it_asks_for_nothing():
    class One(Part):
        inputs: str

    for nothing in ({"dimensions": 0}, {"dimensions": None}, {"task": None}, {"raw_scores": False}, {"unknown": 1}):
        assert One.model_validate({"inputs": "a", **nothing}).inputs == "a"
    for asks in ({"dimensions": False}, {"dimensions": 1}, {"raw_scores": 0}, {"raw_scores": True}):
        ((name, _),) = asks.items()
        with pytest.raises(Invalid, match=f"^`{name}` .* is not possible here; leave it out$") as caught:
            One.model_validate({"inputs": "a", **asks})
        assert caught.value.param == name


def test_fields_that_agree():
    assert agreed({"a": None, "b": None}) is None
    assert agreed({"a": None, "b": False, "c": False}) is False
    with pytest.raises(Invalid, match=r"^`c` contradicts `a`; send one of them$") as caught:
        agreed({"a": 1, "b": None, "c": 2})
    assert caught.value.param == "c"


class Two(Body):
    query: str
    texts: list[str]

    def given(self):
        return {"query": self.query, "texts": self.texts}


@pytest.mark.parametrize(
    ("item", "sent", "param", "place"),
    [("b", 0, "texts", 1), (("q", "a"), 5, "texts", 0), ("q", 0, "query", None), (None, None, "texts", None)],
)
def test_an_error_names_the_field_and_the_place_as_they_were_sent(item, sent, param, place):
    error = Empty("`inputs` cannot be empty", param="inputs", place=sent)
    error.item = item
    named = Two(query="q", texts=["a", "b"]).in_its_words(error)
    assert (type(named), named.param, named.place) == (Empty, param, place)
    assert named.message == f"`{param}` cannot be empty" + ("" if place is None else f" (input {place})")


# Replies


def test_a_reply_is_whole_or_in_parts():
    whole, parts = Reply(b"abc"), Reply([b"ab", b"", b"c"], 404, {"a": "1", "b": "2"})
    assert (whole.parts, whole.body, whole.size, whole.status) == ((b"abc",), b"abc", 3, 200)
    assert (parts.body, parts.size) == (b"abc", 3)
    more = parts.with_headers({"b": "3", "c": "4"})
    assert (more.status, more.content, more.headers) == (404, parts.content, {"a": "1", "b": "3", "c": "4"})


def test_a_vector_in_base64_is_of_little_endian_floats():
    rows = np.array([[1, -2.5]], np.float32)
    (found,) = Form(base64=True).written(rows, None)
    assert base64.b64decode(found) == np.array([1, -2.5], "<f4").tobytes()
    assert FORMS["float"].written(rows, None) is rows


VALUE = {"rows": np.ones((2, 3), np.float32), "text": "a"}


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/json, application/msgpack", "json"),
        ("application/msgpack", "msgpack"),
        ("application/msgpack;q=0.9, application/json", "msgpack"),
        (" application/x-msgpack , */*", "msgpack"),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_json_or_msgpack(writers, accept, kind, large):
    value = VALUE | ({"more": ["x" * 100] * 1000} if large else {})
    reply = asyncio.run(render(Result(value), Call("POST", "/", headers={"accept": accept}), "cpu", writers))
    assert reply.headers == {"content-type": f"application/{kind}"}
    found = json.loads(reply.body) if kind == "json" else ormsgpack.unpackb(reply.body)
    assert found == value | {"rows": [[1, 1, 1]] * 2}


def test_what_a_call_cost_stands_in_headers_in_whole_milliseconds(writers):
    usage = Usage(characters=7, tokens=3, truncated_texts=0, tokenization=0.0014, queue=0.0106, inference=0.5, total=2)
    headers = asyncio.run(render(Result([], usage), CALL, "gpu", writers)).headers
    assert headers == {
        "content-type": "application/json",
        "x-compute-type": "gpu",
        "x-compute-characters": "7",
        "x-compute-tokens": "3",
        "x-compute-time": "500",
        "x-total-time": "2000",
        "x-tokenization-time": "1",
        "x-queue-time": "11",
        "x-inference-time": "500",
    }


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("GZIP, Zstd", "zstd"),
        ("gzip;q=1.0, zstd; q=0.000", "gzip"),
        ("gzip; q = 0, br", None),
        ("gzip;q=0.01", "gzip"),
        ("*", None),
        ("identity", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("size", [1023, 1024, 70_000])
def test_a_body_is_compressed_where_it_is_asked_and_worth_it(writers, accept, encoding, size):
    content = [b"a" * 500, b"b" * (size - 500)]
    call = Call("POST", "/", headers={"accept-encoding": accept, "x-request-id": "7"})
    reply = asyncio.run(finish(Reply(content, 201, {"content-type": "x"}), call, writers))
    assert (reply.status, reply.headers["content-type"], reply.headers["x-request-id"]) == (201, "x", "7")
    encoding = encoding if size >= 1024 else None
    assert reply.headers.get("content-encoding") == encoding
    assert reply.headers.get("vary") == ("accept-encoding" if encoding else None)
    read = {"gzip": gzip.decompress, "zstd": lambda of: zstandard.ZstdDecompressor().decompressobj().decompress(of)}
    assert read.get(encoding, lambda of: of)(reply.body) == b"".join(content)
    assert reply.size < 1000 or encoding is None


def test_the_client_s_names_of_a_call_come_back(writers):
    headers = {"x-request-id": "mine", "x-baseten-customer-request-id": "theirs", "x-other": "no"}
    reply = asyncio.run(finish(Reply(b""), Call("POST", "/", headers=headers), writers))
    assert reply.headers == {"x-request-id": "mine", "x-baseten-customer-request-id": "theirs"}
    assert set(asyncio.run(finish(Reply(b""), CALL, writers)).headers) == {"x-request-id"}
    assert replies._ECHOED == ("x-baseten-customer-request-id",)


# Written values


@pytest.mark.parametrize("writing", [written.JSON, written.MSGPACK])
def test_numbers_and_terms_are_written_as_they_are(writing):
    terms = Terms(np.array([3, 9]), np.array([0.5, 2], np.float32))
    value = {"terms": terms, "one": np.float32(0.25), "turned": np.arange(6.0).reshape(2, 3).T, "count": np.int64(4)}
    content = writing.whole(value)
    found = json.loads(content) if writing is written.JSON else ormsgpack.unpackb(content)
    assert found == {
        "terms": [{"index": 3, "value": 0.5}, {"index": 9, "value": 2.0}],
        "one": 0.25,
        "turned": [[0, 3], [1, 4], [2, 5]],
        "count": 4,
    }
    with pytest.raises(TypeError):
        writing.whole({"a": object()})


@pytest.mark.parametrize(
    ("value", "is_short"),
    [
        ("x" * (1 << 16), True),
        ("x" * ((1 << 16) + 1), False),
        (np.zeros(5461, np.float32), True),
        (np.zeros(5462, np.float32), False),
        ([1] * 64, True),
        ([1] * 65, False),
        ({str(i): 1 for i in range(64)}, True),
        ({str(i): 1 for i in range(65)}, False),
        ([np.zeros(2000, np.float32)] * 3, False),
        ({"a": {"b": ["x" * 70_000]}}, False),
        (Terms(np.zeros(1638), np.zeros(1638)), True),
        (Terms(np.zeros(1639), np.zeros(1639)), False),
    ],
)
def test_what_is_written_at_once(value, is_short):
    assert written.is_short(value) == is_short


# Inputs: what is taken, and what the OpenAPI document says of it

TEXT, IDS = {"type": "string"}, {"type": "array", "items": {"type": "integer", "minimum": 0}}
ONE = {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 1}
ONE_OR_TWO = {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 2}


def many(of: dict) -> dict:
    return {"type": "array", "items": of}


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (inputs.Inputs, [TEXT, IDS, many({"anyOf": [TEXT, IDS]})]),
        (inputs.Texts, [TEXT, many(TEXT)]),
        (inputs.IdLists, [IDS, many(IDS)]),
        (inputs.PredictInputs, [TEXT, ONE_OR_TWO, many(ONE_OR_TWO)]),
        (inputs.Documents, [TEXT, many({"anyOf": [TEXT, ONE]})]),
    ],
)
def test_the_schema_of_inputs(kind, schema):
    assert TypeAdapter(kind).json_schema() == {"anyOf": schema}


def test_the_schema_of_documents_that_may_be_objects():
    text = {"type": "object", "required": ["text"], "properties": {"text": TEXT}}
    assert TypeAdapter(inputs.DocumentTexts).json_schema() == many({"anyOf": [TEXT, text]})
    alone = {**text, "additionalProperties": False}
    either = [TEXT, alone, IDS, many({"anyOf": [TEXT, IDS, alone]})]
    assert TypeAdapter(inputs.Items).json_schema() == {"anyOf": either}


@pytest.mark.parametrize(
    ("kind", "sent", "taken"),
    [
        (inputs.Inputs, "a", ["a"]),
        (inputs.Inputs, [1, 2], [[1, 2]]),
        (inputs.Inputs, [], []),
        (inputs.Inputs, ["a", [1], []], ["a", [1], []]),
        (inputs.Texts, "a", ["a"]),
        (inputs.Texts, ["a", ""], ["a", ""]),
        (inputs.IdLists, [5], [[5]]),
        (inputs.IdLists, [[5], []], [[5], []]),
        (inputs.PredictInputs, "a", inputs.Predictions(["a"], nested=False)),
        (inputs.PredictInputs, ["a"], inputs.Predictions(["a"], nested=False)),
        (inputs.PredictInputs, ["a", "b"], inputs.Predictions([("a", "b")], nested=False)),
        (inputs.PredictInputs, [["a"], ["b", "c"]], inputs.Predictions(["a", ("b", "c")], nested=True)),
        (inputs.PredictInputs, [], inputs.Predictions([], nested=True)),
        (inputs.Documents, "a", ["a"]),
        (inputs.Documents, ["a", ["b"]], ["a", "b"]),
        (inputs.DocumentTexts, ["a", {"text": "b", "title": "c"}], ["a", "b"]),
    ],
)
def test_inputs_that_are_taken(kind, sent, taken):
    assert TypeAdapter(kind).validate_python(sent) == taken


@pytest.mark.parametrize(
    ("kind", "refused", "message"),
    [
        (
            inputs.Inputs,
            (1, None, {}, [1, "a"], [True], [["a"]], [1.0]),
            "must be a string, a list of strings, or token ids",
        ),
        (inputs.Texts, (1, None, [1], [["a"]]), "must be a string or a list of strings"),
        (inputs.IdLists, ("a", 5, ["a"], [[1], "a"], [[True]], [5, [5]]), "must be token ids, or a list of them"),
        (
            inputs.PredictInputs,
            (1, [1], ["a", ["b"]]),
            "must be a string, a pair of strings, or a list of lists of one or two strings",
        ),
        (
            inputs.PredictInputs,
            (["a", "b", "c"], [[]], [["a", "b", "c"]], [["a", 1]]),
            "must be lists of one text or of a pair of texts; send a batch as [[text], [text], ...]",
        ),
        (
            inputs.Documents,
            (1, [1], [[]], [["a", "b"]], [[1]]),
            "must be a string, a list of strings, or a list of lists of one string",
        ),
        (
            inputs.DocumentTexts,
            ("a", {"text": "a"}, [{}], [1]),
            'must be a list of strings, or of objects {"text": string}',
        ),
    ],
)
def test_inputs_that_are_refused(kind, refused, message):
    for value in refused:
        with pytest.raises(ValidationError) as caught:
            TypeAdapter(kind).validate_python(value)
        assert caught.value.errors()[0]["msg"] == f"Value error, {message}", value


@pytest.mark.parametrize("kind", [inputs.Dimensions, inputs.MaxTokens, inputs.TopN])
def test_counts_are_whole_numbers(kind):
    assert [TypeAdapter(kind).validate_python(value) for value in (None, 0, 5)] == [None, 0, 5]
    for value in (-1, 1.0, True, "1"):
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_python(value)


# Errors


def test_an_error_has_the_form_of_its_family():
    error = Invalid("`a` is wrong", param="a")
    inner = {"message": "m", "type": "Validation", "param": "a", "code": 422}
    outer = {"message": "m", "detail": "m", "type": "Validation", "code": 422}
    assert error_shapes.OPENAI.render(error, "m") == {"error": inner, **outer}
    assert error_shapes.TEI.render(error, "m") == {"error": "m", "error_type": "Validation"}


@pytest.mark.parametrize("shape", [error_shapes.OPENAI, error_shapes.TEI])
def test_the_schema_of_errors_is_of_what_is_sent(shape):
    """Each key, of its type, and none that is not required."""

    def check(value, schema):
        if "enum" in schema:
            assert value in schema["enum"]
            return
        named = {str: "string", int: "integer", dict: "object", type(None): "null"}[type(value)]
        assert named in ([schema["type"]] if isinstance(schema["type"], str) else schema["type"])
        if named == "object":
            assert list(value) == schema["required"] == list(schema["properties"])
            for key, of in value.items():
                check(of, schema["properties"][key])

    for kind in (Invalid, Empty, Error, NotReady, Overloaded, Untokenizable):
        for param in ("a", None):
            error = Overloaded() if kind is Overloaded else kind("a", param=param)
            check(dict(shape.render(error, "m")), shape.schema)
