"""A tiny model of each task, and a service of it."""

import json

import torch
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

from bei.checkpoint.load import read
from bei.checkpoint.texts import Prompts
from bei.engines.base import EngineOptions
from bei.engines.torch.engine import TorchEngine
from bei.serving.service import Service
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.list_models import save_list_ranker
from tests.support.tiny_models import random_model, save, write_json

QUERY, TEXTS = "the cat", ["a big dog", "the cat sat on the mat", "it ran", "the cat"]
LABELS = ["O", "B-PER", "I-PER"]


def classifier(folder, labels: list[str], **options):
    model = random_model("bert", 5, "ForSequenceClassification", id2label=dict(enumerate(labels)), **options)
    save(folder, model, pooling=None)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"id2label": {str(i): name for i, name in enumerate(labels)}})
    return read(folder, "tiny")


def embedder(folder):
    save(folder, random_model("bert"))
    prompts = {"query": "then ", "passage": "it was "}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    return read(folder, "tiny")


def colbert(folder):
    multi_vector(folder, query_expansion={"strategy": "fixed", "length": 8})
    return read(folder / "model", "tiny")


def tagger(folder):
    model = random_model("bert", 3, "ForTokenClassification", id2label=dict(enumerate(LABELS)))
    return read(save(folder, model, pooling=None), "tiny")


def splade(folder):
    return read(save(folder, random_model("bert", 0, "ForMaskedLM"), pooling=None), "tiny", pooling="splade")


KINDS = {
    "embedding": embedder,
    "reranker": lambda folder: classifier(folder, ["relevant"]),
    "list_reranker": lambda folder: read(save_list_ranker(folder), "tiny"),
    "classifier": lambda folder: classifier(folder, ["bad", "fair", "good"]),
    "entities": tagger,
    "sparse": splade,
    "multi_vector": colbert,
}


def start(checkpoint, **flags) -> Service:
    service = Service(Settings.load(tiny_config(), environ={}, **flags))
    service.start(checkpoint, TorchEngine(checkpoint, EngineOptions(precision="fp32")))
    return service


OWN = {
    "embedding": ("/v1/embeddings", {"input": TEXTS}),
    "reranker": ("/rerank", {"query": QUERY, "texts": TEXTS}),
    "list_reranker": ("/rerank", {"query": QUERY, "texts": TEXTS}),
    "classifier": ("/predict", {"inputs": [[text] for text in TEXTS]}),
    "entities": ("/predict_tokens", {"inputs": TEXTS}),
    "sparse": ("/embed_sparse", {"inputs": TEXTS}),
    "multi_vector": ("/embed_all", {"inputs": TEXTS}),
}
LONG = " ".join(["the cat sat on the mat", "a big dog ran", "it was red and blue"] * 8)  # more than the 64 tokens read
PROMPTS = Prompts({"query": "then ", "passage": "it was "})


def multi_vector(folder, family="bert", *, mask=None, **options) -> MultiVectorEncoder:
    base = save(folder / "base", random_model(family), pooling=None)
    torch.manual_seed(1)
    dense = Dense(48, 16, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings")
    prompts = options.pop("prompts", {"query": "then ", "document": "it was "})
    modules = [
        Transformer(str(base), max_seq_length=60, **options),
        dense,
        mask or MultiVectorMask(),
        Normalize(module_input_name="token_embeddings"),
    ]
    MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu").save(str(folder / "model"))
    return MultiVectorEncoder(str(folder / "model"), device="cpu")
