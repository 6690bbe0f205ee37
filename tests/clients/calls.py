"""The calls of each Python client to a live server. Runs in .venv-clients: `python calls.py JSON` prints JSON.

A call returns its result as one of: `vectors`, `vector` (of the first text), `ranks` ([index, score] in the order
given), `labels` (the best label of each text), `spans` ([start, end] of each entity), `cosines` (of the first text to
the others), `message` (of the error that the library raised), `logits` (as ranks), `signs` (of the vectors, packed),
`chunks` (vectors of the texts as chunks of one). Libraries are imported where they are used, because the
test run reads the names of the calls without having them.
"""

import asyncio
import base64
import json
import struct
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

CALLS: dict[str, Callable[[Any], dict[str, Any]]] = {}


def call(function: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    CALLS[function.__name__] = function
    return function


class Given:
    """`urls` by model: embedding, reranker, classifier and pii have one address; by_score is the reranker, best first,
    at another. `bases` are the base URLs of each model, for clients that ask for no path of its own task: those of
    /info and of /."""

    def __init__(
        self,
        urls: dict[str, str],
        bases: dict[str, str],
        texts: list[str],
        query: str,
        documents: list[str],
        people: list[str],
    ):
        self.urls, self.bases = urls, bases
        self.texts, self.query, self.documents, self.people = texts, query, documents, people


# -- OpenAI ----------------------------------------------------------------------------------------------------------


@call
def openai_embeddings(given: Given) -> dict[str, Any]:
    from openai import OpenAI

    client = OpenAI(base_url=given.urls["embedding"] + "/v1", api_key="k", max_retries=0)
    assert client.models.list().data[0].id
    answer = client.embeddings.create(model="any", input=given.texts)
    assert answer.usage.prompt_tokens > 0
    return {"vectors": [item.embedding for item in answer.data]}


@call
def openai_embeddings_float(given: Given) -> dict[str, Any]:
    from openai import OpenAI

    client = OpenAI(base_url=given.urls["embedding"] + "/v1", api_key="k", max_retries=0)
    answer = client.embeddings.create(model="any", input=given.texts[0], encoding_format="float", user="u")
    return {"vector": answer.data[0].embedding}


@call
def openai_async_embeddings(given: Given) -> dict[str, Any]:
    from openai import AsyncOpenAI

    async def run() -> list[list[float]]:
        async with AsyncOpenAI(base_url=given.urls["embedding"] + "/v1", api_key="k", max_retries=0) as client:
            answers = await asyncio.gather(*(client.embeddings.create(model="any", input=text) for text in given.texts))
            return [answer.data[0].embedding for answer in answers]

    return {"vectors": asyncio.run(run())}


@call
def openai_batch(given: Given) -> dict[str, Any]:
    from openai import OpenAI

    client = OpenAI(base_url=given.urls["embedding"] + "/v1", api_key="k", max_retries=0)
    request = {"method": "POST", "url": "/v1/embeddings"}
    rows = [{"custom_id": str(i), **request, "body": {"input": text}} for i, text in enumerate(given.texts)]
    sent = client.files.create(file=("a.jsonl", "\n".join(map(json.dumps, rows)).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=sent.id, endpoint="/v1/embeddings", completion_window="24h")
    while batch.status in ("validating", "in_progress", "finalizing"):
        time.sleep(0.1)  # the client has no other way to wait
        batch = client.batches.retrieve(batch.id)
    answers = map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
    return {"vectors": [answer["response"]["body"]["data"][0]["embedding"] for answer in answers]}


@call
def openai_says_what_was_wrong(given: Given) -> dict[str, Any]:
    from openai import OpenAI, UnprocessableEntityError

    client = OpenAI(base_url=given.urls["embedding"] + "/v1", api_key="k", max_retries=0)
    try:
        client.embeddings.create(model="any", input="a", dimensions=9999)
    except UnprocessableEntityError as error:
        return {"message": str(error)}
    raise AssertionError("no error")


@call
def langchain_openai(given: Given) -> dict[str, Any]:
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(
        model="any", base_url=given.urls["embedding"] + "/v1", api_key="k", check_embedding_ctx_length=False
    )
    return {"vectors": embeddings.embed_documents(given.texts)}


@call
def langchain_openai_token_ids_are_refused(given: Given) -> dict[str, Any]:
    """By default it sends ids of OpenAI's own vocabulary, which mean nothing to another model."""
    from langchain_openai import OpenAIEmbeddings
    from openai import UnprocessableEntityError

    class Encoding:
        """tiktoken downloads the real one."""

        def encode_ordinary(self, text: str) -> list[int]:
            return [100_000 + len(word) for word in text.split()]

        def encode(self, text: str, **options: Any) -> list[int]:
            return self.encode_ordinary(text)

    import tiktoken

    tiktoken.encoding_for_model = tiktoken.get_encoding = lambda name: Encoding()
    embeddings = OpenAIEmbeddings(model="any", base_url=given.urls["embedding"] + "/v1", api_key="k")
    try:
        embeddings.embed_documents(given.texts)
    except UnprocessableEntityError as error:
        return {"message": str(error)}
    raise AssertionError("no error")


@call
def llama_index_openai_like(given: Given) -> dict[str, Any]:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    embeddings = OpenAILikeEmbedding(model_name="any", api_base=given.urls["embedding"] + "/v1", api_key="k")
    return {"vectors": embeddings.get_text_embedding_batch(given.texts)}


@call
def haystack_openai(given: Given) -> dict[str, Any]:
    from haystack.components.embedders import OpenAITextEmbedder
    from haystack.utils import Secret

    key = Secret.from_token("k")
    embedder = OpenAITextEmbedder(model="any", api_base_url=given.urls["embedding"] + "/v1", api_key=key)
    return {"vector": embedder.run(given.texts[0])["embedding"]}


# -- Baseten ---------------------------------------------------------------------------------------------------------


def _performance_client(url: str, **options: Any) -> Any:
    from baseten_performance_client import PerformanceClient

    return PerformanceClient(base_url=url, api_key="k", **options)


@call
def baseten_embed(given: Given) -> dict[str, Any]:
    answer = _performance_client(given.urls["embedding"]).embed(input=given.texts, model="any")
    return {"vectors": answer.numpy().tolist()}


@call
def baseten_embed_base64(given: Given) -> dict[str, Any]:
    answer = _performance_client(given.urls["embedding"]).embed(
        input=given.texts, model="any", encoding_format="base64"
    )
    raw = [base64.b64decode(item.embedding) for item in answer.data]
    return {"vectors": [list(struct.unpack(f"<{len(row) // 4}f", row)) for row in raw]}


@call
def baseten_embed_http2(given: Given) -> dict[str, Any]:
    client = _performance_client(given.urls["embedding"], http_version=2)
    return {"vectors": client.embed(input=given.texts, model="any").numpy().tolist()}


@call
def baseten_async_embed(given: Given) -> dict[str, Any]:
    async def run() -> Any:
        return await _performance_client(given.urls["embedding"]).async_embed(input=given.texts, model="any")

    return {"vectors": asyncio.run(run()).numpy().tolist()}


@call
def baseten_rerank(given: Given) -> dict[str, Any]:
    answer = _performance_client(given.urls["reranker"]).rerank(query=given.query, texts=given.documents)
    return {"ranks": [[item.index, item.score] for item in answer.data]}


@call
def baseten_rerank_all_options(given: Given) -> dict[str, Any]:
    answer = _performance_client(given.urls["reranker"]).rerank(
        query=given.query,
        texts=given.documents,
        return_text=True,
        truncate=True,
        truncation_direction="Left",
    )
    assert [item.text for item in answer.data] == given.documents
    return {"ranks": [[item.index, item.score] for item in answer.data]}


@call
def baseten_classify(given: Given) -> dict[str, Any]:
    answer = _performance_client(given.urls["classifier"]).classify(inputs=given.documents)
    return {"labels": [rows[0].label for rows in answer.data]}


@call
def baseten_async_classify(given: Given) -> dict[str, Any]:
    async def run() -> Any:
        return await _performance_client(given.urls["classifier"]).async_classify(inputs=given.documents)

    return {"labels": [rows[0].label for rows in asyncio.run(run()).data]}


@call
def baseten_batch_post_predict_tokens(given: Given) -> dict[str, Any]:
    payloads = [{"inputs": [[text]], "aggregation_strategy": "simple"} for text in given.people]
    answer = _performance_client(given.urls["pii"]).batch_post("/predict_tokens", payloads)
    return {"spans": [[[e["start"], e["end"]] for e in body[0]] for body in answer.data]}


@call
def llama_index_baseten(given: Given) -> dict[str, Any]:
    from llama_index.embeddings.baseten import BasetenEmbedding
    from llama_index.embeddings.openai import OpenAIEmbedding

    embeddings = BasetenEmbedding(model_id="abc", api_key="k")
    assert isinstance(embeddings, OpenAIEmbedding)
    embeddings.api_base = given.urls["embedding"] + "/v1"
    return {"vectors": embeddings.get_text_embedding_batch(given.texts)}


# -- Hugging Face ----------------------------------------------------------------------------------------------------


def _hub(url: str) -> Any:
    from huggingface_hub import InferenceClient

    return InferenceClient(model=url)


@call
def huggingface_hub_feature_extraction(given: Given) -> dict[str, Any]:
    return {"vectors": _hub(given.urls["embedding"]).feature_extraction(given.texts).tolist()}


@call
def huggingface_hub_feature_extraction_options(given: Given) -> dict[str, Any]:
    client = _hub(given.urls["embedding"] + "/embed")
    rows = client.feature_extraction(given.texts[0], normalize=True, truncate=True, truncation_direction="Right")
    return {"vector": rows[0].tolist()}


@call
def huggingface_hub_async(given: Given) -> dict[str, Any]:
    from huggingface_hub import AsyncInferenceClient

    async def run() -> Any:
        return await AsyncInferenceClient(model=given.urls["embedding"]).feature_extraction(given.texts)

    return {"vectors": asyncio.run(run()).tolist()}


@call
def huggingface_hub_sentence_similarity(given: Given) -> dict[str, Any]:
    cosines = _hub(given.urls["embedding"]).sentence_similarity(given.texts[0], other_sentences=given.texts[1:])
    return {"cosines": cosines}


@call
def huggingface_hub_text_classification(given: Given) -> dict[str, Any]:
    client = _hub(given.urls["classifier"] + "/predict")
    return {"labels": [client.text_classification(text)[0].label for text in given.documents]}


@call
def huggingface_hub_text_classification_top_k(given: Given) -> dict[str, Any]:
    client = _hub(given.bases["classifier"])
    found = [client.text_classification(text, top_k=1) for text in given.documents]
    assert all(len(rows) == 1 for rows in found)
    return {"labels": [rows[0].label for rows in found]}


@call
def huggingface_hub_token_classification(given: Given) -> dict[str, Any]:
    client = _hub(given.urls["pii"] + "/predict_tokens")
    found = [client.token_classification(text, aggregation_strategy="simple") for text in given.people]
    return {"spans": [[[e.start, e.end] for e in (rows[0] if isinstance(rows[0], list) else rows)] for rows in found]}


def _tei(url: str) -> Any:
    from tei_client import HttpClient

    return HttpClient(url)


@call
def tei_client_embed(given: Given) -> dict[str, Any]:
    return {"vectors": _tei(given.bases["embedding"]).embed(given.texts)}


@call
def tei_client_async_embed(given: Given) -> dict[str, Any]:
    return {"vectors": asyncio.run(_tei(given.bases["embedding"]).async_embed(given.texts))}


@call
def tei_client_embed_all(given: Given) -> dict[str, Any]:
    rows = _tei(given.bases["embedding"]).embed_all(given.texts)
    means = [[sum(column) / len(states) for column in zip(*states, strict=True)] for states in rows]
    return {"vectors": means}


@call
def tei_client_tokenize(given: Given) -> dict[str, Any]:
    client = _tei(given.bases["embedding"])
    ids = [result.get_ids() for result in client.tokenize(given.texts)]
    assert len(client.decode(ids)) == len(given.texts)
    return {"vectors": _tei(given.bases["embedding"]).embed([row[1:-1] for row in ids])}


@call
def tei_client_info(given: Given) -> dict[str, Any]:
    kinds = {name: _tei(url).info().server_model_type.value for name, url in given.bases.items()}
    expected = {"classifier": "classifier", "pii": "classifier", "reranker": "reranker", "by_score": "reranker"}
    assert kinds == {name: expected.get(name, "embedding") for name in given.bases}
    assert _tei(given.bases["classifier"]).info().server_model_metadata.label2id["business"] == 0
    return {"vectors": _tei(given.bases["embedding"]).embed(given.texts)}


@call
def tei_client_rerank(given: Given) -> dict[str, Any]:
    answer = _tei(given.bases["reranker"]).rerank(given.query, given.documents)
    return {"ranks": [[rank.index, rank.score] for rank in answer.ranks]}


@call
def tei_client_classify(given: Given) -> dict[str, Any]:
    answer = _tei(given.bases["classifier"]).classify(given.documents)
    return {"labels": [result.scores[0].label for result in answer]}


# -- infinity --------------------------------------------------------------------------------------------------------


def _infinity(url: str) -> Any:
    from infinity_client import Client

    return Client(base_url=url)


@call
def infinity_client_embeddings(given: Given) -> dict[str, Any]:
    from infinity_client.api.default import embeddings
    from infinity_client.models import OpenAIEmbeddingInputText

    with _infinity(given.urls["embedding"]) as client:
        answer = embeddings.sync(client=client, body=OpenAIEmbeddingInputText(input_=given.texts, model="any"))
    return {"vectors": [item.embedding for item in answer.data]}


@call
def infinity_client_rerank(given: Given) -> dict[str, Any]:
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    with _infinity(given.urls["reranker"]) as client:
        body = RerankInput(query=given.query, documents=given.documents, model="any")
        answer = rerank.sync(client=client, body=body)
    return {"ranks": [[item.index, item.relevance_score] for item in answer.results]}


@call
def infinity_client_classify(given: Given) -> dict[str, Any]:
    from infinity_client.api.default import classify
    from infinity_client.models import ClassifyInput

    with _infinity(given.urls["classifier"]) as client:
        answer = classify.sync(client=client, body=ClassifyInput(input_=given.documents, model="any"))
    return {"labels": [max(rows, key=lambda row: row.score).label for rows in answer.data]}


@call
def langchain_community_infinity_embeddings(given: Given) -> dict[str, Any]:
    from langchain_community.embeddings import InfinityEmbeddings

    embeddings = InfinityEmbeddings(model="any", infinity_api_url=given.urls["embedding"])
    return {"vectors": embeddings.embed_documents(given.texts)}


def _langchain_documents(given: Given) -> list[Any]:
    from langchain_core.documents import Document

    return [Document(page_content=text, metadata={"index": i}) for i, text in enumerate(given.documents)]


def _langchain_ranks(compressor: Any, given: Given) -> dict[str, Any]:
    found = compressor.compress_documents(_langchain_documents(given), given.query)
    return {"ranks": [[document.metadata["index"], document.metadata["relevance_score"]] for document in found]}


@call
def langchain_community_infinity_rerank(given: Given) -> dict[str, Any]:
    from infinity_client import Client
    from langchain_community.document_compressors.infinity_rerank import InfinityRerank

    client = Client(base_url=given.urls["reranker"])
    return _langchain_ranks(InfinityRerank(client=client, model="any", top_n=len(given.documents)), given)


@call
def langchain_community_jina_rerank(given: Given) -> dict[str, Any]:
    from langchain_community.document_compressors import JinaRerank, jina_rerank

    jina_rerank.JINA_API_URL = given.urls["reranker"] + "/v1/rerank"
    compressor = JinaRerank(jina_api_key="k", model="any", top_n=len(given.documents))
    return _langchain_ranks(compressor, given)


# -- TEI through llama-index and haystack ----------------------------------------------------------------------------


@call
def llama_index_tei_embeddings(given: Given) -> dict[str, Any]:
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    embeddings = TextEmbeddingsInference(model_name="any", base_url=given.urls["embedding"], auth_token="Bearer k")
    return {"vectors": embeddings.get_text_embedding_batch(given.texts)}


@call
def llama_index_tei_rerank(given: Given) -> dict[str, Any]:
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    ranker = TextEmbeddingInference(base_url=given.urls["reranker"], top_n=len(given.documents), model_name="any")
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(given.documents)]
    found = ranker.postprocess_nodes(nodes, query_str=given.query)
    return {"ranks": [[int(node.node.node_id), node.score] for node in found]}


@call
def haystack_tei_text_embedder(given: Given) -> dict[str, Any]:
    from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPITextEmbedder

    embedder = HuggingFaceAPITextEmbedder(
        api_type="text_embeddings_inference", api_params={"url": given.urls["embedding"]}, normalize=True
    )
    return {"vector": embedder.run(given.texts[0])["embedding"]}


@call
def haystack_tei_document_embedder(given: Given) -> dict[str, Any]:
    from haystack import Document
    from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPIDocumentEmbedder

    embedder = HuggingFaceAPIDocumentEmbedder(
        api_type="text_embeddings_inference", api_params={"url": given.urls["embedding"]}, normalize=True
    )
    documents = embedder.run([Document(content=text) for text in given.texts])["documents"]
    return {"vectors": [document.embedding for document in documents]}


@call
def haystack_tei_ranker(given: Given) -> dict[str, Any]:
    from haystack import Document
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    ranker = HuggingFaceTEIRanker(url=given.urls["by_score"], top_k=2)
    documents = [Document(id=str(i), content=text) for i, text in enumerate(given.documents)]
    found = ranker.run(query=given.query, documents=documents)["documents"]
    return {"ranks": [[int(document.id), document.score] for document in found]}


# -- Cohere ----------------------------------------------------------------------------------------------------------


@call
def cohere_v1_rerank(given: Given) -> dict[str, Any]:
    import cohere

    client = cohere.Client(api_key="k", base_url=given.urls["reranker"])
    answer = client.rerank(model="any", query=given.query, documents=given.documents, return_documents=True)
    assert all(item.document.text == given.documents[item.index] for item in answer.results)
    return {"ranks": [[item.index, item.relevance_score] for item in answer.results]}


@call
def cohere_v2_rerank(given: Given) -> dict[str, Any]:
    import cohere

    client = cohere.ClientV2(api_key="k", base_url=given.urls["reranker"])
    answer = client.rerank(model="any", query=given.query, documents=given.documents, top_n=2)
    return {"ranks": [[item.index, item.relevance_score] for item in answer.results]}


@call
def cohere_v1_embed(given: Given) -> dict[str, Any]:
    import cohere

    client = cohere.Client(api_key="k", base_url=given.urls["embedding"])
    return {"vectors": client.embed(texts=given.texts, model="any", input_type="search_document").embeddings}


@call
def cohere_v2_embed(given: Given) -> dict[str, Any]:
    import cohere

    client = cohere.ClientV2(api_key="k", base_url=given.urls["embedding"])
    answer = client.embed(
        texts=given.texts, model="any", input_type="search_document", embedding_types=["float", "ubinary"]
    )
    assert len(answer.embeddings.ubinary[0]) == len(answer.embeddings.float_[0]) // 8
    return {"vectors": answer.embeddings.float_}


@call
def langchain_cohere_rerank(given: Given) -> dict[str, Any]:
    from langchain_cohere import CohereRerank

    compressor = CohereRerank(
        base_url=given.urls["reranker"], cohere_api_key="k", model="any", top_n=len(given.documents)
    )
    return _langchain_ranks(compressor, given)


@call
def langchain_cohere_embeddings(given: Given) -> dict[str, Any]:
    from langchain_cohere import CohereEmbeddings

    embeddings = CohereEmbeddings(base_url=given.urls["embedding"], cohere_api_key="k", model="any")
    return {"vectors": embeddings.embed_documents(given.texts)}


# -- Ollama ----------------------------------------------------------------------------------------------------------


@call
def ollama_embed(given: Given) -> dict[str, Any]:
    from ollama import Client

    client = Client(host=given.urls["embedding"])
    listed = client.list().models
    assert {model.model for model in client.ps().models} <= {model.model for model in listed}
    assert client.show(listed[0].model).capabilities == ["embedding"]
    answer = client.embed(model="any", input=given.texts, options={"num_ctx": 256}, keep_alive="5m")
    assert answer.prompt_eval_count > 0
    return {"vectors": answer.embeddings}


@call
def ollama_async_embed(given: Given) -> dict[str, Any]:
    from ollama import AsyncClient

    client = AsyncClient(host=given.urls["embedding"])
    return {"vectors": asyncio.run(client.embed(model="any", input=given.texts)).embeddings}


@call
def ollama_embeddings(given: Given) -> dict[str, Any]:
    from ollama import Client

    return {"vector": Client(host=given.urls["embedding"]).embeddings(model="any", prompt=given.texts[0]).embedding}


@call
def ollama_says_what_was_wrong(given: Given) -> dict[str, Any]:
    from ollama import Client, ResponseError

    try:
        Client(host=given.urls["embedding"]).embed(model="any", input="a", dimensions=9999)
    except ResponseError as error:
        assert error.status_code == 422
        return {"message": error.error}
    raise AssertionError("no error")


@call
def langchain_ollama(given: Given) -> dict[str, Any]:
    from langchain_ollama import OllamaEmbeddings

    return {"vectors": OllamaEmbeddings(model="any", base_url=given.urls["embedding"]).embed_documents(given.texts)}


@call
def llama_index_ollama(given: Given) -> dict[str, Any]:
    from llama_index.embeddings.ollama import OllamaEmbedding

    embeddings = OllamaEmbedding(model_name="any", base_url=given.urls["embedding"])
    return {"vectors": embeddings.get_text_embedding_batch(given.texts)}


# -- NVIDIA NIM ------------------------------------------------------------------------------------------------------


@call
def langchain_nvidia_embeddings(given: Given) -> dict[str, Any]:
    from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings

    embeddings = NVIDIAEmbeddings(base_url=given.urls["embedding"] + "/v1", model="any", truncate="END")
    return {"vectors": embeddings.embed_documents(given.texts)}


@call
def langchain_nvidia_rerank(given: Given) -> dict[str, Any]:
    from langchain_nvidia_ai_endpoints import NVIDIARerank

    ranker = NVIDIARerank(base_url=given.urls["reranker"] + "/v1", model="any", top_n=2)
    found = ranker.compress_documents(_langchain_documents(given), given.query)
    return {"logits": [[of.metadata["index"], of.metadata["relevance_score"]] for of in found]}


@call
def llama_index_nvidia_embeddings(given: Given) -> dict[str, Any]:
    from llama_index.embeddings.nvidia import NVIDIAEmbedding

    embeddings = NVIDIAEmbedding(base_url=given.urls["embedding"] + "/v1", model="any", nvidia_api_key="k")
    return {"vectors": embeddings.get_text_embedding_batch(given.texts)}


@call
def llama_index_nvidia_rerank(given: Given) -> dict[str, Any]:
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.nvidia_rerank import NVIDIARerank

    name = given.bases["reranker"].partition("/models/")[2]  # it looks for the model among those served
    ranker = NVIDIARerank(base_url=given.urls["reranker"] + "/v1", model=name, nvidia_api_key="k", top_n=2)
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(given.documents)]
    found = ranker.postprocess_nodes(nodes, query_str=given.query)
    return {"logits": [[int(of.node.node_id), of.score] for of in found]}


# -- Voyage and Jina -------------------------------------------------------------------------------------------------


def _voyage(url: str) -> Any:
    import voyageai

    return voyageai.Client(api_key="k", base_url=url + "/v1", max_retries=0)


@call
def voyage_embed(given: Given) -> dict[str, Any]:
    answer = _voyage(given.urls["embedding"]).embed(given.texts, model="any", input_type="document")
    assert answer.total_tokens > 0
    return {"vectors": answer.embeddings}


@call
def voyage_embed_signs(given: Given) -> dict[str, Any]:
    client = _voyage(given.urls["embedding"])
    rows = client.embed(given.texts, model="any", output_dtype="ubinary").embeddings
    assert all(0 <= number <= 255 for row in rows for number in row)
    integers = client.embed(given.texts, model="any", output_dtype="int8", output_dimension=16).embeddings
    assert {len(row) for row in integers} == {16}
    return {"signs": rows}


@call
def voyage_rerank(given: Given) -> dict[str, Any]:
    answer = _voyage(given.urls["reranker"]).rerank(given.query, given.documents, model="any", top_k=2)
    assert all(item.document == given.documents[item.index] for item in answer.results)
    return {"ranks": [[item.index, item.relevance_score] for item in answer.results]}


@call
def voyage_says_what_was_wrong(given: Given) -> dict[str, Any]:
    from voyageai.error import VoyageError

    try:
        _voyage(given.urls["embedding"]).embed(["a"], model="any", output_dimension=9999)
    except VoyageError as error:
        return {"message": str(error).replace("output_dimension", "dimensions")}
    raise AssertionError("no error")


@call
def langchain_voyage_embeddings(given: Given) -> dict[str, Any]:
    import voyageai
    from langchain_voyageai import VoyageAIEmbeddings

    voyageai.Client.tokenize = lambda self, texts, model: [text.split() for text in texts]  # it downloads the real one
    url = given.urls["embedding"] + "/v1"
    embeddings = VoyageAIEmbeddings(model="any", voyage_api_key="k", base_url=url, batch_size=8)
    return {"vectors": embeddings.embed_documents(given.texts)}


@call
def langchain_voyage_rerank(given: Given) -> dict[str, Any]:
    from langchain_voyageai import VoyageAIRerank

    ranker = VoyageAIRerank(model="any", voyage_api_key="k", base_url=given.urls["reranker"] + "/v1", top_k=2)
    return _langchain_ranks(ranker, given)


def _jina(given: Given, **options: Any) -> Any:
    from llama_index.embeddings.jinaai import JinaEmbedding

    embeddings = JinaEmbedding(api_key="k", model="any", **options)
    embeddings._api.api_url = given.urls["embedding"] + "/v1/embeddings"
    return embeddings


@call
def llama_index_jina(given: Given) -> dict[str, Any]:
    return {"vectors": _jina(given, task="retrieval.passage").get_text_embedding_batch(given.texts)}


@call
def llama_index_jina_late_chunking(given: Given) -> dict[str, Any]:
    return {"chunks": _jina(given, late_chunking=True).get_text_embedding_batch(given.texts)}


# -- Azure -----------------------------------------------------------------------------------------------------------


@call
def azure_openai(given: Given) -> dict[str, Any]:
    from openai import AzureOpenAI

    url = given.urls["embedding"]
    client = AzureOpenAI(azure_endpoint=url, api_key="k", api_version="2024-10-21", max_retries=0)
    return {"vectors": [item.embedding for item in client.embeddings.create(model="any", input=given.texts).data]}


# -- LiteLLM ---------------------------------------------------------------------------------------------------------


def _litellm_vectors(model: str, path: str, options: dict[str, Any], given: Given) -> dict[str, Any]:
    import litellm

    litellm.telemetry = False
    base = given.urls["embedding"] + path
    answer = litellm.embedding(model=model, input=given.texts, api_base=base, api_key="k", **options)
    return {"vectors": [item["embedding"] for item in answer.data]}


def _litellm_ranks(model: str, path: str, given: Given) -> dict[str, Any]:
    import litellm

    litellm.telemetry = False
    base = given.urls["reranker"] + path
    answer = litellm.rerank(
        model=model, query=given.query, documents=given.documents, top_n=2, api_base=base, api_key="k"
    )
    return {"ranks": [[item["index"], item["relevance_score"]] for item in answer.results]}


CALLS |= {
    "litellm_openai": partial(_litellm_vectors, "openai/any", "/v1", {}),
    "litellm_hosted_vllm": partial(_litellm_vectors, "hosted_vllm/any", "/v1", {}),
    "litellm_infinity": partial(_litellm_vectors, "infinity/any", "", {}),
    "litellm_jina": partial(_litellm_vectors, "jina_ai/any", "/v1", {}),
    "litellm_cohere": partial(_litellm_vectors, "cohere/any", "/v2/embed", {}),
    "litellm_huggingface": partial(_litellm_vectors, "huggingface/any", "/embed", {"input_type": "embed"}),
    "litellm_rerank_cohere": partial(_litellm_ranks, "cohere/any", "/v2/rerank"),
    "litellm_rerank_jina": partial(_litellm_ranks, "jina_ai/any", ""),
    "litellm_rerank_infinity": partial(_litellm_ranks, "infinity/any", ""),
    "litellm_rerank_hosted_vllm": partial(_litellm_ranks, "hosted_vllm/any", ""),
    "litellm_rerank_huggingface": partial(_litellm_ranks, "huggingface/any", ""),
}


def main() -> None:
    given = Given(**json.loads(sys.argv[1]))
    found: dict[str, Any] = {}
    for name, function in CALLS.items():
        try:
            found[name] = function(given)
        except Exception:
            found[name] = {"failed": traceback.format_exc()}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
