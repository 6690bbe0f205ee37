"""Every request field that a family documents: a body of its route reads it, or it changes an answer and is refused by
name where it is not read, or it is without effect and the page about HTTP says so. The lists are those of each family's
own reference, so a field that the tables of ours both lack is found here."""

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from bei.api import ROUTES
from bei.api.fields import CHANGING, WITHOUT_EFFECT, Part
from tests.support.documents import text_of

PAIR = "queries documents items data_1 data_2 text_1 text_2"
VLLM = "model user truncate_prompt_tokens padding truncation_side request_id priority mm_processor_kwargs cache_salt"
CHAT = "messages add_generation_prompt continue_final_message chat_template chat_template_kwargs media_io_kwargs"
BYTES = "encoding_format embed_dtype endianness dimensions use_activation"
CUT = "truncate truncation_direction"
OLLAMA = "model truncate dimensions keep_alive options"
RANKED = "query documents model top_n return_documents"
DOCUMENTED = [
    # (family, paths, fields)
    ("OpenAI", "/v1/embeddings", "input model encoding_format dimensions user"),
    ("TEI", "/embed", f"inputs {CUT} prompt_name normalize dimensions"),
    ("TEI", "/embed_all /embed_sparse", f"inputs {CUT} prompt_name"),
    ("TEI", "/rerank", f"query texts {CUT} raw_scores return_text"),
    ("TEI", "/predict", f"inputs {CUT} raw_scores"),
    ("TEI", "/similarity", "inputs parameters"),
    ("TEI", "/tokenize", "inputs add_special_tokens prompt_name"),
    ("TEI", "/decode", "ids skip_special_tokens"),
    ("TEI", "/vertex", "instances"),
    ("TEI", "/v1/embeddings /embeddings", "input model user encoding_format dimensions"),
    ("vLLM", "/v1/embeddings", f"{VLLM} {CHAT} {BYTES} input add_special_tokens late_chunking_params"),
    ("vLLM", "/pooling", f"{VLLM} {CHAT} {BYTES} input add_special_tokens task late_chunking_params"),
    ("vLLM", "/v1/classify", f"{VLLM} {CHAT} input add_special_tokens use_activation"),
    (
        "vLLM",
        "/score /v1/score",
        f"{VLLM} {PAIR} max_tokens_per_query max_tokens_per_doc instruction chat_template_kwargs use_activation",
    ),
    (
        "vLLM",
        "/rerank /v1/rerank /v2/rerank",
        f"{VLLM} query documents top_n max_tokens_per_query max_tokens_per_doc instruction chat_template_kwargs"
        " use_activation",
    ),
    (
        "vLLM",
        "/v2/embed",
        "model input_type texts images inputs output_dimension embedding_types truncate max_tokens priority",
    ),
    ("vLLM before 0.12", "/pooling /v1/classify /score /rerank", "activation softmax normalize"),
    ("infinity", "/embeddings", "model input encoding_format user dimensions modality"),
    ("infinity", "/rerank", f"{RANKED} raw_scores"),
    ("infinity", "/classify", "input model raw_scores"),
    ("SGLang", "/v1/embeddings", "input model encoding_format dimensions user rid priority lora_path embed_overrides"),
    ("SGLang", "/v1/rerank", f"{RANKED} instruct"),
    # its `query` is of another task, and a body without `text_1` or its synonyms is refused
    ("SGLang", "/v1/score", "items label_token_ids apply_softmax item_first model"),
    ("llama.cpp", "/embedding", "content input embd_normalize"),
    ("llama.cpp", "/v1/embeddings", "input encoding_format embd_normalize model"),
    ("llama.cpp", "/rerank /reranking /v1/rerank /v1/reranking", "query documents texts top_n model"),
    ("Ollama", "/api/embed", f"input {OLLAMA}"),
    ("Ollama", "/api/embeddings", "model prompt keep_alive options"),
    ("Ollama", "/api/show", "model name"),
    ("OVMS", "/v1/embeddings", "model input encoding_format"),
    ("OVMS", "/v1/rerank", RANKED),
    (
        "NIM",
        "/v1/embeddings",
        "model input input_type truncate encoding_format embedding_type dimensions modality user",
    ),
    ("NIM", "/v1/ranking", "model query passages truncate"),
    ("Cohere", "/v1/rerank /v2/rerank", f"{RANKED} rank_fields max_chunks_per_doc max_tokens_per_doc priority"),
    (
        "Cohere",
        "/v1/embed /v2/embed",
        "texts model input_type embedding_types truncate images inputs max_tokens output_dimension priority",
    ),
    (
        "Jina",
        "/v1/embeddings",
        "model input task dimensions normalized late_chunking truncate embedding_type return_multivector",
    ),
    ("Jina", "/v1/rerank", RANKED),
    (
        "Voyage",
        "/v1/embeddings",
        "input model input_type truncation output_dimension output_dtype encoding_format",
    ),
    ("Voyage", "/v1/rerank", "query documents model top_k return_documents truncation"),
    (
        "BEI",
        "/predict_tokens",
        f"inputs {CUT} raw_scores aggregation_strategy ignore_labels",
    ),
    ("Baseten's client", "/rerank", f"query model raw_scores return_text texts {CUT}"),
    ("Baseten's client", "/predict", f"inputs model raw_scores {CUT}"),
    ("huggingface_hub", "/embed", f"inputs normalize prompt_name {CUT} options"),
    ("huggingface_hub", "/predict /predict_tokens", "inputs parameters options"),
]
CASES = [(family, path, fields.split()) for family, paths, fields in DOCUMENTED for path in paths.split()]


def bodies_of(kind: Any) -> Iterator[type[Part]]:
    """The models of a route's body, which may be a union."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from bodies_of(part)


@pytest.mark.parametrize(("family", "path", "fields"), CASES, ids=lambda of: of if isinstance(of, str) else "")
def test_a_documented_field_is_read_refused_or_without_effect(family, path, fields):
    bodies = [
        body for route in ROUTES if route.path == path and route.method == "POST" for body in bodies_of(route.body)
    ]
    read = frozenset().union(*(body.own for body in bodies))
    unknown = [name for name in fields if name not in read | CHANGING.keys() | WITHOUT_EFFECT]
    assert bodies and unknown == []


def test_a_field_is_in_one_table():
    assert not WITHOUT_EFFECT & CHANGING.keys()
    assert all(any(name in fields for _, _, fields in CASES) for name in WITHOUT_EFFECT)


def test_the_page_names_the_fields_without_effect():
    (line,) = re.findall(r"^\* Without effect: (.+)$", text_of("docs/http.md"), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", line)) == WITHOUT_EFFECT


@pytest.mark.parametrize("name", ["paddings", "pad", "dimension"])
def test_the_lists_bite(name):
    with pytest.raises(AssertionError):
        test_a_documented_field_is_read_refused_or_without_effect("nobody", "/v1/embeddings", [name])
