"""Whole models against sentence-transformers on the same folder: its own layout, pooling, Dense, LayerNorm, prompts."""

import asyncio
import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

from bei.checkpoint.load import read
from bei.engines.base import EngineOptions
from bei.engines.torch.engine import TorchEngine
from bei.errors import SetupError
from bei.serving.answers import Options
from tests.support.tiny_models import FAMILIES, random_model, save, write_json

TEXTS = ["the cat sat on the mat", "dog", "it ran under a big old tree, then it sat!", "the " * 100, "Red BLUE"]
PROMPTS = {"query": "then it was ", "document": ""}
MODES = [
    "cls",
    "max",
    "mean",
    "mean_sqrt_len_tokens",
    "weightedmean",
    "lasttoken",
    ("cls", "mean"),
    ("mean", "max", "cls"),
]


@pytest.fixture
def tiny(tmp_path):
    def build(
        *modules, family: str = "bert", config: dict | None = None, **options
    ) -> tuple[SentenceTransformer, object]:
        base = save(tmp_path / "base", random_model(family, **(config or {})), pooling=None)
        torch.manual_seed(1)
        modules = [Transformer(str(base), max_seq_length=48), *modules]
        SentenceTransformer(modules=modules, device="cpu", **options).save(str(tmp_path / "model"))
        return SentenceTransformer(str(tmp_path / "model"), device="cpu"), read(tmp_path / "model", "m")

    return build


def ours(start_service, checkpoint, normalize: bool, **options) -> np.ndarray:
    service = start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32")), checkpoint)
    return asyncio.run(service.model.embed(TEXTS, normalize=normalize, options=Options(**options))).rows


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_pooling(tiny, start_service, mode):
    reference, checkpoint = tiny(Pooling(48, mode))
    assert checkpoint.max_tokens == 48
    rows = ours(start_service, checkpoint, normalize=False)
    np.testing.assert_allclose(rows, reference.encode(TEXTS), atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tiny, start_service, family):
    reference, checkpoint = tiny(Pooling(48, "mean"), Normalize(), family=family)
    alone = reference.encode(TEXTS, batch_size=1)  # Phi-3's angles depend on the longest text of transformers' batch
    np.testing.assert_allclose(ours(start_service, checkpoint, normalize=True), alone, atol=1e-5)


@pytest.mark.parametrize(
    "activation", [torch.nn.Tanh, torch.nn.Identity, torch.nn.ReLU, torch.nn.GELU, torch.nn.Sigmoid]
)
@pytest.mark.parametrize("bias", [True, False])
def test_head_layers_after_pooling(tiny, start_service, activation, bias):
    dense = Dense(48, 16, bias=bias, activation_function=activation())
    norm = LayerNorm(16)
    torch.nn.init.normal_(norm.norm.weight)
    reference, checkpoint = tiny(Pooling(48, "mean"), Normalize(), dense, norm)
    assert checkpoint.spec.row_size == 16
    rows = ours(start_service, checkpoint, normalize=False)
    np.testing.assert_allclose(rows, reference.encode(TEXTS), atol=2e-5)


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken", "weightedmean"])
def test_prompts(tiny, start_service, include_prompt, mode):
    pooling = Pooling(48, mode, include_prompt=include_prompt)
    reference, checkpoint = tiny(pooling, Normalize(), prompts=PROMPTS, default_prompt_name="query")
    default = ours(start_service, checkpoint, normalize=True)
    np.testing.assert_allclose(default, reference.encode(TEXTS), atol=1e-5)
    named = ours(start_service, checkpoint, normalize=True, prompt_name="document")
    np.testing.assert_allclose(named, reference.encode(TEXTS, prompt_name="document"), atol=1e-5)
    assert np.abs(default - named).max() > 1e-3


CASINGS = [{"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}, {}]


@pytest.mark.parametrize("casing", CASINGS, ids=str)
@pytest.mark.parametrize("kind", ["BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast"])
def test_a_bert_tokenizer_s_casing_is_that_of_its_config(tiny, start_service, tmp_path, kind, casing):
    """tokenizer.json says otherwise; a tokenizer of another class has only tokenizer.json."""
    tiny(Pooling(48, "mean"), Normalize())
    file = tmp_path / "model" / "tokenizer_config.json"
    write_json(file, json.loads(file.read_text()) | {"tokenizer_class": kind, **casing})
    reference, checkpoint = SentenceTransformer(str(tmp_path / "model"), device="cpu"), read(tmp_path / "model", "m")
    texts = ["The CAT Sat", "thé cát", "a北b", "the cat"]
    service = start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32")), checkpoint)
    np.testing.assert_allclose(asyncio.run(service.model.embed(texts)).rows, reference.encode(texts), atol=1e-5)


def test_the_end_from_which_the_tokenizer_cuts(tiny, start_service, tmp_path):
    tiny(Pooling(48, "mean"), Normalize())
    file = tmp_path / "model" / "tokenizer_config.json"
    write_json(file, json.loads(file.read_text()) | {"truncation_side": "left"})
    reference, checkpoint = SentenceTransformer(str(tmp_path / "model"), device="cpu"), read(tmp_path / "model", "m")
    long = ["the " * 100 + "big red dog"]
    service = start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32")), checkpoint)
    np.testing.assert_allclose(asyncio.run(service.model.embed(long)).rows, reference.encode(long), atol=1e-5)
    right = asyncio.run(service.model.embed(long, options=Options(truncation_direction="right"))).rows
    np.testing.assert_allclose(right, reference.encode(["the " * 100]), atol=1e-5)


def test_vectors_that_the_model_itself_cuts(tiny, start_service):
    reference, checkpoint = tiny(Pooling(48, "mean"), Normalize(), truncate_dim=16)
    expected = reference.encode(TEXTS, normalize_embeddings=True)
    assert (expected.shape, checkpoint.dimensions) == ((5, 16), 16)
    np.testing.assert_allclose(ours(start_service, checkpoint, normalize=True), expected, atol=1e-5)
    service = start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32")), checkpoint)
    assert asyncio.run(service.model.embed(TEXTS, dimensions=48)).rows.shape == (5, 48)  # who asks for more gets it
    cosines = reference.similarity(expected[:1], expected[1:])[0]
    pairs = [(TEXTS[0], text) for text in TEXTS[1:]]
    np.testing.assert_allclose(asyncio.run(service.model.score(pairs)).rows, cosines, atol=1e-5)
    np.testing.assert_allclose(asyncio.run(service.model.similarity(TEXTS[0], TEXTS[1:])).rows, cosines, atol=1e-5)


@pytest.mark.parametrize("name", ["dot", "euclidean", "manhattan", "cosine"])
@pytest.mark.parametrize(("last", "dimensions"), [((), None), ((Normalize(),), None), ((Normalize(),), 20)])
def test_similarities(tiny, start_service, name, last, dimensions):
    options = {"similarity_fn_name": name, "truncate_dim": dimensions}
    reference, checkpoint = tiny(Pooling(48, "mean"), *last, **options)
    assert (checkpoint.similarity.name, checkpoint.similarity.of_units) == (name, bool(last))
    expected = reference.encode(TEXTS)
    service = start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32")), checkpoint)
    found = asyncio.run(service.model.similarity(TEXTS[0], TEXTS[1:])).rows
    np.testing.assert_allclose(found, reference.similarity(expected[:1], expected[1:])[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("similarity_fn_name", "similarity_fn_name 'strange' is not supported; supported: cosine, dot, euclidean"),
        ("model_type", "model_type 'strange' is not supported; supported: SentenceTransformer, SparseEncoder"),
    ],
)
def test_a_word_that_sentence_transformers_lacks_is_refused(tmp_path, key, message):
    folder = save(tmp_path, random_model("bert"))
    write_json(folder / "config_sentence_transformers.json", {key: "strange"})
    with pytest.raises(SetupError, match=f"config_sentence_transformers.json: {message}"):
        read(folder, "m")


def test_as_embeddinggemma(tiny, start_service):
    dense = [Dense(48, 96, bias=False, activation_function=torch.nn.Identity())]
    dense.append(Dense(96, 48, bias=False, activation_function=torch.nn.Identity()))
    both_ways = {"use_bidirectional_attention": True}
    reference, checkpoint = tiny(Pooling(48, "mean"), *dense, Normalize(), family="gemma3_text", config=both_ways)
    assert not checkpoint.spec.causal
    np.testing.assert_allclose(ours(start_service, checkpoint, normalize=True), reference.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "bert"])
def test_an_instruction_is_a_prompt_in_full(tiny, start_service, family):
    task = "then it was: "
    pooling = Pooling(48, "lasttoken" if family == "qwen3" else "mean")
    reference, checkpoint = tiny(pooling, Normalize(), family=family, prompts=PROMPTS, default_prompt_name="query")
    rows = ours(start_service, checkpoint, normalize=True, instruction=task)
    np.testing.assert_allclose(rows, reference.encode(TEXTS, prompt=task), atol=1e-5)


def test_the_older_layout_gives_the_same(tiny, start_service, tmp_path):
    reference, checkpoint = tiny(Pooling(48, ("cls", "mean")))
    flags = {"word_embedding_dimension": 48, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    write_json(tmp_path / "model" / "1_Pooling" / "config.json", flags)
    write_json(tmp_path / "model" / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": True})
    older = read(tmp_path / "model", "m")
    assert older.spec == checkpoint.spec
    np.testing.assert_allclose(ours(start_service, older, normalize=False), reference.encode(TEXTS), atol=2e-5)
