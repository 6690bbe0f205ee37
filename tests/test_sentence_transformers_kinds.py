"""sentence-transformers' SparseEncoder, MultiVectorEncoder and CrossEncoder against ours, on their own folders."""

import asyncio
import json
import string

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SparseEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.multi_vector_encoder import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sparse_encoder.modules import Router, SparseStaticEmbedding, SpladePooling

from bei.api.prompts import of_kind
from bei.checkpoint.load import read
from bei.engines.base import EngineOptions
from bei.engines.torch.engine import TorchEngine
from bei.errors import Empty, Invalid, SetupError
from bei.serving.answers import Options
from tests.support.task_models import multi_vector
from tests.support.tiny_models import VOCAB, change_module, random_model, save, write_json

TEXTS = ["the cat sat on the mat", "dog", "it ran under a big old tree, then it sat!", "the " * 100, "Red BLUE ..."]
QUERIES = ["the cat", "a big dog ran then?", "tree " * 60]


def service_of(start_service, checkpoint):
    return start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32")), checkpoint)


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_sparse(tmp_path, start_service, strategy, activation):
    base = save(tmp_path / "base", random_model("bert", 0, "ForMaskedLM"), pooling=None)
    transformer = Transformer(str(base), transformer_task="fill-mask", max_seq_length=48)
    pooling = SpladePooling(strategy, activation)
    prompts = {"query": "then it was ", "document": ""}
    SparseEncoder(modules=[transformer, pooling], prompts=prompts, device="cpu").save(str(tmp_path / "model"))
    reference, checkpoint = SparseEncoder(str(tmp_path / "model"), device="cpu"), read(tmp_path / "model", "m")
    assert checkpoint.task == "sparse"
    service = service_of(start_service, checkpoint)
    for prompt in ("query", "document"):
        expected = reference.encode(TEXTS, prompt_name=prompt, convert_to_sparse_tensor=False).numpy()
        answer = asyncio.run(service.model.embed_sparse(TEXTS, options=Options(prompt_name=prompt)))
        for terms, row in zip(answer.rows, expected, strict=True):
            dense = np.zeros_like(row)
            dense[terms.indices] = terms.values
            np.testing.assert_allclose(dense, row, atol=2e-5)


def test_a_sparse_model_s_own_limit_of_terms(tmp_path, start_service):
    base = save(tmp_path / "base", random_model("bert", 0, "ForMaskedLM"), pooling=None)
    SparseEncoder(str(base), device="cpu", max_active_dims=5).save(str(tmp_path / "model"))
    reference, checkpoint = SparseEncoder(str(tmp_path / "model"), device="cpu"), read(tmp_path / "model", "m")
    expected = reference.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    for terms, row in zip(
        asyncio.run(service_of(start_service, checkpoint).model.embed_sparse(TEXTS)).rows, expected, strict=True
    ):
        assert terms.indices.tolist() == np.flatnonzero(row).tolist()
        np.testing.assert_allclose(terms.values, row[terms.indices], atol=2e-5)
        assert len(terms.indices) <= 5


def test_the_older_sparse_layout(tmp_path):
    """sentence-transformers 5: a module MLMTransformer, and no `transformer_task`."""
    base = save(tmp_path / "base", random_model("bert", 0, "ForMaskedLM"), pooling=None)
    transformer = Transformer(str(base), transformer_task="fill-mask", max_seq_length=48)
    SparseEncoder(modules=[transformer, SpladePooling()], device="cpu").save(str(tmp_path / "model"))
    newer = read(tmp_path / "model", "m")
    change_module(tmp_path / "model", 0, type="sentence_transformers.sparse_encoder.models.MLMTransformer")
    write_json(tmp_path / "model" / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})
    assert read(tmp_path / "model", "m").spec == newer.spec


def check_multi_vector(reference, checkpoint, start_service) -> None:
    assert checkpoint.task == "multi_vector"
    service = service_of(start_service, checkpoint)
    queries, documents = reference.encode_query(QUERIES), reference.encode_document(TEXTS)
    for role, texts, expected in (("query", QUERIES, queries), (None, TEXTS, documents)):
        answer = asyncio.run(service.model.embed_tokens(texts, options=Options(prompt_name=role)))
        for row, of in zip(answer.rows, expected, strict=True):
            np.testing.assert_allclose(row, np.asarray(of), atol=2e-5)
    scores = reference.similarity(queries, documents).numpy()
    pairs = [(query, text) for query in QUERIES for text in TEXTS]
    np.testing.assert_allclose(asyncio.run(service.model.score(pairs)).rows, scores.ravel(), rtol=1e-4)
    np.testing.assert_allclose(asyncio.run(service.model.rerank(QUERIES[0], TEXTS)).rows, scores[0], rtol=1e-4)


OPTIONS = {
    "plain": {},
    "lengths": {"query_length": 8, "document_length": 20},
    "expansion": {"query_expansion": {"strategy": "fixed", "length": 12}},
    "expansion that is attended to": {"query_expansion": {"strategy": "fixed", "length": 12, "attend": True}},
    "expansion to a floor": {"query_expansion": {"strategy": "min", "length": 12}},
    "skiplist": {"mask": MultiVectorMask(list(string.punctuation))},
    "skiplist of queries, too": {"mask": MultiVectorMask([",", "cat"], skiplist_tasks=["query", "document"])},
}


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_multi_vector(tmp_path, start_service, family, case):
    reference = multi_vector(tmp_path, family, **OPTIONS[case])
    check_multi_vector(reference, read(tmp_path / "model", "m"), start_service)


@pytest.mark.parametrize("attend", [True, False])
def test_pylate(tmp_path, start_service, attend):
    """PyLate 3: markers, lengths and skiplist at top level; without mask and norm."""
    multi_vector(tmp_path)
    folder = tmp_path / "model"
    rows = json.loads((folder / "modules.json").read_text())[:2]
    rows[1]["type"] = "pylate.models.Dense.Dense"
    write_json(folder / "modules.json", rows)
    markers = {"query_prefix": "[MASK]", "document_prefix": "[UNK]", "query_length": 10, "document_length": 30}
    saved = {"model_type": "ColBERT", "attend_to_expansion_tokens": attend, "similarity_fn_name": "MaxSim", **markers}
    write_json(folder / "config_sentence_transformers.json", saved)
    check_multi_vector(MultiVectorEncoder(str(folder), device="cpu"), read(folder, "m"), start_service)


def test_stanford(tmp_path, start_service):
    """colbertv2.0: the projection beside the encoder, settings in artifact.metadata."""
    from safetensors.numpy import load_file, save_file

    folder = save(tmp_path, random_model("bert"), pooling=None)
    stored = load_file(folder / "model.safetensors")
    linear = np.random.default_rng(0).normal(size=(16, 48)).astype(np.float32)
    save_file(
        {**{f"bert.{name}": of for name, of in stored.items()}, "linear.weight": linear}, folder / "model.safetensors"
    )
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "architectures": ["HF_ColBERT"]})
    metadata = {"query_token_id": "[MASK]", "doc_token_id": "[UNK]", "query_maxlen": 10, "doc_maxlen": 30, "dim": 16}
    write_json(folder / "artifact.metadata", metadata)
    check_multi_vector(MultiVectorEncoder(str(folder), device="cpu"), read(folder, "m"), start_service)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "distilbert", "electra"])
def test_cross_encoder(tmp_path, start_service, family):
    base = save(tmp_path / "base", random_model(family, 0, "ForSequenceClassification", num_labels=1), pooling=None)
    CrossEncoder(str(base), max_length=48, device="cpu").save(str(tmp_path / "model"))
    reference, checkpoint = CrossEncoder(str(tmp_path / "model"), device="cpu"), read(tmp_path / "model", "m")
    assert checkpoint.task == "reranker"
    service = service_of(start_service, checkpoint)
    for query in QUERIES:
        pairs = [(query, text) for text in TEXTS]
        answer = asyncio.run(service.model.rerank(query, TEXTS))
        np.testing.assert_allclose(answer.rows, reference.predict(pairs), atol=1e-5)
        raw = asyncio.run(service.model.rerank(query, TEXTS, scoring="identity"))
        logits = reference.predict(pairs, activation_fn=torch.nn.Identity())
        np.testing.assert_allclose(raw.rows, logits, atol=1e-5)


@pytest.mark.parametrize("labels", [1, 3])
def test_a_cross_encoder_s_own_prompt(tmp_path, start_service, labels):
    """It goes before the first text of a pair."""
    model = random_model("bert", 0, "ForSequenceClassification", num_labels=labels)
    base = save(tmp_path / "base", model, pooling=None)
    prompts = {"prompts": {"query": "it was very "}, "default_prompt_name": "query"}
    CrossEncoder(str(base), max_length=48, device="cpu", **prompts).save(str(tmp_path / "model"))
    reference, checkpoint = CrossEncoder(str(tmp_path / "model"), device="cpu"), read(tmp_path / "model", "m")
    service = service_of(start_service, checkpoint)
    pairs = [(query, text) for query in QUERIES for text in TEXTS]
    rows = asyncio.run(service.model.classify(pairs, scoring="identity")).rows
    expected = reference.predict(pairs, activation_fn=torch.nn.Identity()).reshape(len(pairs), labels)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    bare = reference.predict(pairs, prompt="", activation_fn=torch.nn.Identity()).reshape(len(pairs), labels)
    assert np.abs(expected - bare).max() > 1e-3
    with pytest.raises(Empty, match="input 1"):
        asyncio.run(service.model.classify([pairs[0], ("", "")]))


def test_a_cross_encoder_s_own_activation(tmp_path, start_service):
    base = save(tmp_path / "base", random_model("bert", 0, "ForSequenceClassification", num_labels=1), pooling=None)
    identity = torch.nn.Identity()
    CrossEncoder(str(base), max_length=48, device="cpu", activation_fn=identity).save(str(tmp_path / "model"))
    reference, checkpoint = CrossEncoder(str(tmp_path / "model"), device="cpu"), read(tmp_path / "model", "m")
    answer = asyncio.run(service_of(start_service, checkpoint).model.rerank(QUERIES[0], TEXTS))
    np.testing.assert_allclose(answer.rows, reference.predict([(QUERIES[0], t) for t in TEXTS]), atol=1e-5)
    assert checkpoint.scoring == "identity"


def inference_free(folder, default: str | None = "document", **options) -> SparseEncoder:
    """A Router as OpenSearch's doc models have it: documents by an MLM, queries by a table."""
    base = save(folder / "base", random_model("bert", 0, "ForMaskedLM"), pooling=None)
    transformer = Transformer(str(base), transformer_task="fill-mask", max_seq_length=48)
    weight = torch.rand(len(set(VOCAB)), generator=torch.Generator().manual_seed(0))
    weight[VOCAB.index("cat")] = 0
    queries = SparseStaticEmbedding(transformer.tokenizer, weight=weight, frozen=True)
    router = Router(
        {"query": [queries], "document": [transformer, SpladePooling("max", "log1p_relu")]},
        default_route=default,
        allow_empty_key=default is not None,
    )
    SparseEncoder(modules=[router], device="cpu", **options).save(str(folder / "model"))
    return SparseEncoder(str(folder / "model"), device="cpu")


def check_terms(rows, expected) -> None:
    for terms, row in zip(rows, expected.numpy(), strict=True):
        dense = np.zeros_like(row)
        dense[terms.indices] = terms.values
        np.testing.assert_allclose(dense, row, atol=2e-5)
        assert (np.diff(terms.indices) > 0).all()


@pytest.mark.parametrize("default", ["document", "query"])
@pytest.mark.parametrize("prompts", [{}, {"query": "then it was ", "document": "a big "}], ids=["bare", "prompts"])
def test_queries_that_need_no_encoder(tmp_path, start_service, default, prompts):
    reference = inference_free(tmp_path, default, **({"prompts": prompts} if prompts else {}))
    checkpoint = read(tmp_path / "model", "m")
    assert checkpoint.task == "sparse"
    service = service_of(start_service, checkpoint)
    texts = [*TEXTS, "the cat the cat"]
    ours = {
        name: asyncio.run(service.model.embed_sparse(texts, options=Options(prompt_name=name))).rows
        for name in (None, "query", "document")
    }
    check_terms(ours["query"], reference.encode_query(texts, convert_to_sparse_tensor=False))
    check_terms(ours["document"], reference.encode_document(texts, convert_to_sparse_tensor=False))
    check_terms(ours[None], reference.encode(texts, convert_to_sparse_tensor=False))


def test_a_limit_of_terms_holds_for_queries_too(tmp_path, start_service):
    reference = inference_free(tmp_path, max_active_dims=3)
    service = service_of(start_service, read(tmp_path / "model", "m"))
    rows = asyncio.run(service.model.embed_sparse(TEXTS, options=Options(prompt_name="query"))).rows
    check_terms(rows, reference.encode_query(TEXTS, convert_to_sparse_tensor=False))


def test_a_router_without_a_default(tmp_path, start_service):
    inference_free(tmp_path, None)
    service = service_of(start_service, read(tmp_path / "model", "m"))
    with pytest.raises(Invalid, match="`prompt_name` must be query or document"):
        asyncio.run(service.model.embed_sparse(TEXTS))


def test_an_idf_file_in_place_of_weights(tmp_path):
    inference_free(tmp_path)
    folder = next((tmp_path / "model").glob("*/query_0_SparseStaticEmbedding"), None)
    folder = folder or tmp_path / "model" / "query_0_SparseStaticEmbedding"
    (folder / "model.safetensors").unlink()
    write_json(folder / "config.json", {"frozen": True, "path": "idf.json"})
    write_json(folder / "idf.json", {"dog": 2.5, "cat": 1.5, "unheard": 9.0})
    lookup = read(tmp_path / "model", "m").lookup
    assert {VOCAB[i]: float(lookup.weights[i]) for i in np.flatnonzero(lookup.weights)} == {"dog": 2.5, "cat": 1.5}


def change_router(folder, **fields) -> None:
    file = folder / "router_config.json"
    write_json(file, json.loads(file.read_text()) | fields)


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"structure": {"query": ["document_0_Transformer"], "document": []}}, "have modules of their own"),
        ({"structure": {}}, "lacks `structure`"),
        (
            {"types": {"again": "sentence_transformers.models.Router"}, "structure": {"query": ["again"]}},
            "a Router inside a Router is not supported",
        ),
        ({"parameters": {"route_mappings": {"('query', None)": "query"}}}, "route_mappings are not supported"),
        ({"parameters": {"default_route": "image"}}, "default_route 'image' must be query or document"),
    ],
)
def test_routers_that_are_refused(tmp_path, fields, refusal):
    inference_free(tmp_path)
    change_router(tmp_path / "model", **fields)
    with pytest.raises(SetupError, match=refusal):
        read(tmp_path / "model", "m")


def test_queries_of_another_tokenizer_are_refused(tmp_path):
    inference_free(tmp_path)
    file = tmp_path / "model" / "query_0_SparseStaticEmbedding" / "tokenizer.json"
    write_json(file, json.loads(file.read_text()) | {"normalizer": None})
    with pytest.raises(SetupError, match="differs from the tokenizer of the documents"):
        read(tmp_path / "model", "m")


@pytest.mark.parametrize(("kind", "name"), [("search_query", "query"), ("passage", "document"), ("query", "query")])
def test_kinds_of_text_choose_the_route(tmp_path, kind, name):
    """`input_type` of Cohere, NVIDIA and Voyage, for a model that has no prompts."""
    inference_free(tmp_path)
    assert of_kind(read(tmp_path / "model", "m").prompts, "input_type", kind) == name


def test_an_older_router_of_dense_layers_is_refused(tmp_path):
    """sentence-transformers up to 4: an Asym with a Dense for either side of a pair."""
    save(tmp_path, random_model("bert"))
    rows = json.loads((tmp_path / "modules.json").read_text())
    rows.append({"idx": 2, "name": "2", "path": "2_Asym", "type": "sentence_transformers.models.Asym"})
    write_json(tmp_path / "modules.json", rows)
    types = {"query_0": "sentence_transformers.models.Dense.Dense", "doc_0": "sentence_transformers.models.Dense.Dense"}
    structure = {"query": ["query_0"], "doc": ["doc_0"]}
    write_json(tmp_path / "2_Asym" / "config.json", {"types": types, "structure": structure, "parameters": {}})
    with pytest.raises(SetupError, match="the routes 'query, doc' have modules of their own"):
        read(tmp_path, "m")


UNKNOWN = (
    *("BoW", "CNN", "LSTM", "WordEmbeddings", "WordWeights", "WeightedLayerPooling", "CLIPModel"),
    *("SparseAutoEncoder", "HierarchicalTokenPooling"),
)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_modules_that_are_not_served_are_refused_by_name(tmp_path, kind):
    folder = save(tmp_path, random_model("bert"))
    change_module(folder, 0, type=f"sentence_transformers.models.{kind}")
    with pytest.raises(SetupError, match=f"modules.json: module '{kind}' is not supported"):
        read(folder, "m")


@pytest.mark.parametrize("residual", [True, False])
def test_pylate_with_several_dense_layers(tmp_path, start_service, residual):
    """mxbai-edge-colbert's layout: two projections of PyLate, which may add their input."""
    base = save(tmp_path / "base", random_model("bert"), pooling=None)
    torch.manual_seed(1)
    options = {"bias": False, "activation_function": torch.nn.Identity(), "module_input_name": "token_embeddings"}
    dense = [Dense(48, 64, use_residual=residual, **options), Dense(64, 16, use_residual=residual, **options)]
    modules = [Transformer(str(base), max_seq_length=60), *dense]
    MultiVectorEncoder(modules=modules, device="cpu").save(str(tmp_path / "model"))
    folder = tmp_path / "model"
    for i in (1, 2):
        change_module(folder, i, type="pylate.models.Dense.Dense")
    markers = {"query_prefix": "[MASK]", "document_prefix": "[UNK]", "query_length": 10, "document_length": 30}
    write_json(folder / "config_sentence_transformers.json", {"model_type": "ColBERT", **markers})
    check_multi_vector(MultiVectorEncoder(str(folder), device="cpu"), read(folder, "m"), start_service)
