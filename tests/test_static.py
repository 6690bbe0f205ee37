"""Models without an encoder: sentence-transformers' StaticEmbedding, and Model2Vec's own layout."""

import asyncio
import json
import os
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import LayerNorm, StaticEmbedding

from bei.checkpoint.load import read
from bei.engines import choice
from bei.engines.base import Batch, EngineOptions
from bei.engines.interpreters import Interpreters
from bei.engines.static import StaticEngine
from bei.errors import Empty, SetupError, Untokenizable
from bei.serving.answers import Options
from bei.serving.service import Service
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.tiny_models import VOCAB, word_pieces, write_json

TEXTS = ["the cat sat on the mat", "dog", "it ran under a big old tree, then it sat!", "the " * 700, "Red ☃ BLUE"]
RANDOM = np.random.default_rng(0)
TABLE = RANDOM.standard_normal((len(VOCAB), 24)).astype(np.float32)


def saved(folder, *modules, table=TABLE, **options) -> SentenceTransformer:
    static = StaticEmbedding(word_pieces(), embedding_weights=torch.from_numpy(table))
    SentenceTransformer(modules=[static, *modules], device="cpu", **options).save(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


def model2vec(folder, config: dict | None = None, **tensors):
    """Model2Vec's own layout; by default one row per token."""
    folder.mkdir()
    word_pieces().save(str(folder / "tokenizer.json"))
    save_file(tensors or {"embeddings": TABLE}, folder / "model.safetensors")
    stated = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": 24, "seq_length": 1000000}
    write_json(folder / "config.json", {**stated, "normalize": True, **(config or {})})
    return read(folder, "m")


def served(start_service, checkpoint):
    return start_service(StaticEngine(checkpoint), checkpoint)


@pytest.mark.parametrize("layers", ["none", "norm", "dense", "residuals", "layer norm"])
def test_as_sentence_transformers(tmp_path, start_service, layers):
    torch.manual_seed(0)
    norm = LayerNorm(24)
    torch.nn.init.normal_(norm.norm.weight)
    residuals = [Dense(24, 24, use_residual=True), Dense(24, 16, use_residual=True)]
    after = {"none": [], "norm": [Normalize()], "dense": [Dense(24, 16)], "residuals": residuals}
    after = (after | {"layer norm": [norm, Dense(24, 8)]})[layers]
    prompts = {"query": "then it was ", "document": ""}
    reference, checkpoint = saved(tmp_path / "m", *after, prompts=prompts), read(tmp_path / "m", "m")
    assert checkpoint.task == "embedding"
    service = served(start_service, checkpoint)
    for prompt in prompts:
        answer = asyncio.run(service.model.embed(TEXTS, normalize=False, options=Options(prompt_name=prompt)))
        expected = reference.encode(TEXTS, prompt_name=prompt, normalize_embeddings=False)
        unit = layers == "norm"  # whose last norm is the request's choice
        rows = answer.rows / np.linalg.norm(answer.rows, axis=1, keepdims=True) if unit else answer.rows
        np.testing.assert_allclose(rows, expected, atol=2e-5)


def test_the_truncation_of_tokenizer_json(tmp_path, start_service):
    saved(tmp_path / "m")
    (file,) = (tmp_path / "m").rglob("tokenizer.json")
    cut = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    write_json(file, json.loads(file.read_text()) | {"truncation": cut})
    checkpoint, reference = read(tmp_path / "m", "m"), SentenceTransformer(str(tmp_path / "m"), device="cpu")
    assert checkpoint.max_tokens == 7
    rows = asyncio.run(served(start_service, checkpoint).model.embed(TEXTS, normalize=False)).rows
    np.testing.assert_allclose(rows, reference.encode(TEXTS), atol=2e-5)


def test_potion_has_both_layouts(tmp_path, start_service):
    """modules.json counts, and `embeddings` in the root are its table."""
    model2vec(tmp_path / "m")
    rows = [{"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"}]
    rows.append({"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"})
    write_json(tmp_path / "m" / "modules.json", rows)
    (tmp_path / "m" / "1_Normalize").mkdir()
    checkpoint, reference = read(tmp_path / "m", "m"), SentenceTransformer(str(tmp_path / "m"), device="cpu")
    assert checkpoint.reading == "bare"
    rows = asyncio.run(served(start_service, checkpoint).model.embed(TEXTS)).rows
    np.testing.assert_allclose(rows, reference.encode(TEXTS), atol=2e-5)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
def test_model2vec_s_own_layout(tmp_path, start_service, mapped, weighted):
    """As StaticModel.encode: unknown tokens are left out, and a row is found by the mapping and weighted by token."""
    rows_of = RANDOM.integers(0, 9, len(VOCAB))
    weights = RANDOM.random(len(VOCAB))
    table = TABLE[:9] if mapped else TABLE
    more = ({"mapping": rows_of} if mapped else {}) | ({"weights": weights} if weighted else {})
    checkpoint = model2vec(tmp_path / "m", embeddings=table, **more)
    rows = asyncio.run(served(start_service, checkpoint).model.embed(TEXTS, normalize=False)).rows
    tokenizer, unknown = word_pieces(), VOCAB.index("[UNK]")
    for text, row in zip(TEXTS, rows, strict=True):
        ids = [id for id in tokenizer.encode(text, add_special_tokens=False).ids if id != unknown][:512]
        expected = table[rows_of[ids] if mapped else ids] * (weights[ids][:, None] if weighted else 1)
        np.testing.assert_allclose(row, expected.mean(0), atol=2e-5)
    with pytest.raises(Empty, match="without a token"):
        asyncio.run(served(start_service, checkpoint).model.embed(["☃"]))


@pytest.mark.parametrize(("stated", "limit"), [({}, 512), ({"max_length": 9}, 9), ({"max_length": None}, 1 << 20)])
def test_the_length_of_model2vec(tmp_path, stated, limit):
    assert model2vec(tmp_path / "m", stated).max_tokens == limit


@pytest.mark.parametrize(
    ("tensors", "refusal"),
    [
        ({"embeddings": TABLE, "mapping": np.full(len(VOCAB), 999)}, "mapping must be rows of embeddings: 0 to"),
        ({"embeddings": TABLE, "weights": np.ones(3)}, "one number for each token"),
        ({"embeddings": TABLE, "linear.weight": TABLE}, "linear.weight"),
        ({"embeddings": (9 * TABLE).astype(np.int8)}, "use float32"),
        ({"embeddings": TABLE[:7]}, "no embedding"),
        ({"something": TABLE}, "embedding.weight or embeddings"),
    ],
)
def test_refusals(tmp_path, start_service, tensors, refusal):
    with pytest.raises((SetupError, Untokenizable), match=refusal):
        served(start_service, model2vec(tmp_path / "m", **tensors))


def settings(folder, **flags) -> Settings:
    return Settings.load(tiny_config(str(folder)), environ={}, **flags)


def test_no_process_computes_it(tmp_path):
    saved(tmp_path / "m")
    service = Service(settings(tmp_path / "m"), interpreters=Interpreters())
    child = service._isolated._processes[0].child._process
    service.load()
    try:
        assert child.poll() is not None
        assert service.model.engine.facts.name == "static"
        asyncio.run(service.check())
        assert asyncio.run(service.model.embed(["the cat"])).rows.shape == (1, 24)
    finally:
        service.close()


def test_devices_are_told_to_be_without_effect(tmp_path, caplog):
    saved(tmp_path / "m")
    service = Service(
        settings(tmp_path / "m", devices=f"cpu:{min(os.sched_getaffinity(0))}"), interpreters=Interpreters()
    )
    service.load()
    service.close()
    assert "devices: without effect, since the model is a table of vectors" in caplog.messages
    assert service._isolated is None


@pytest.mark.parametrize(
    ("flags", "refusal"),
    [
        ({"engine": "torch"}, "engine torch: the model is a table"),
        ({"precision": "int8"}, "precision int8"),
        ({"precision": "int4"}, "precision int4"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, flags, refusal):
    saved(tmp_path / "m")
    with pytest.raises(SetupError, match=refusal):
        choice.create(settings(tmp_path / "m", **flags), read(tmp_path / "m", "m"))


def test_a_model_with_layers_has_another_engine(tiny_checkpoint):
    with pytest.raises(SetupError, match="without layers"):
        StaticEngine(tiny_checkpoint, EngineOptions())


def test_a_short_text_takes_microseconds(tmp_path):
    """Here 10 microseconds; the bound is for slow machines."""
    saved(tmp_path / "m")
    engine, batch = StaticEngine(read(tmp_path / "m", "m")), Batch.pack([[5, 6, 7, 8, 9, 10]])
    times = []
    for _ in range(50):
        started = time.perf_counter()
        engine.run(batch)
        times.append(time.perf_counter() - started)
    assert min(times) < 1e-3
