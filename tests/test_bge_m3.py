"""BGE-M3's three outputs of one model: their formulas (FlagEmbedding, BGEM3FlagModel) on transformers' states."""

import asyncio
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from bei.checkpoint.load import read
from bei.engines.base import EngineOptions
from bei.engines.torch.engine import TorchEngine
from bei.errors import SetupError
from bei.serving.answers import Options
from tests.support.tiny_models import random_model, save, write_json

CLS = {"pooling_mode": "cls"}
UNUSED = {0, 1, 2, 3}  # [PAD], [UNK], [CLS], [SEP]
TEXTS = ["the cat sat on the mat", "a dog", "zq", "the the the"]


@pytest.fixture
def model():
    return random_model("xlm-roberta")


@pytest.fixture
def heads():
    generator = torch.Generator().manual_seed(0)
    shapes = {"sparse": (1, 48), "colbert": (48, 48)}
    heads = {
        name: {"weight": torch.randn(shape, generator=generator), "bias": torch.randn(shape[:1], generator=generator)}
        for name, shape in shapes.items()
    }
    heads["sparse"]["bias"] += 8  # some weights are above zero
    return heads


@pytest.fixture
def folder(tmp_path, model, heads):
    save(tmp_path, model, pooling=CLS)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write_json(tmp_path / "tokenizer_config.json", {**config, "eos_token": "[SEP]"})
    for name, tensors in heads.items():
        save_file(tensors, tmp_path / f"{name}_linear.safetensors")
    return tmp_path


@pytest.fixture
def service(start_service, folder):
    checkpoint = read(folder, "bge-m3")
    return start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32", threads=1)), checkpoint)


def states(model, service) -> list[tuple[list[int], torch.Tensor]]:
    ids = [encoding.ids.tolist() for encoding in service.model.texts.tokenizer.encode(TEXTS, truncate=True)]
    with torch.no_grad():
        return [(of, model(torch.tensor([of])).last_hidden_state[0]) for of in ids]


def test_sparse(service, model, heads):
    assert service.model.route == "/v1/embeddings"
    answer = asyncio.run(service.model.embed_sparse(TEXTS)).rows
    for terms, (ids, hidden) in zip(answer, states(model, service), strict=True):
        weights = F.linear(hidden, **heads["sparse"]).relu()[:, 0].tolist()
        expected: dict[int, float] = {}
        for id, weight in zip(ids, weights, strict=True):
            if weight > expected.get(id, 0.0) and id not in UNUSED:
                expected[id] = weight
        found = dict(zip(terms.indices.tolist(), terms.values.tolist(), strict=True))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert sum(len(terms.indices) for terms in answer) > 5


def test_multi_vectors(service, model, heads):
    rows = asyncio.run(service.model.embed_tokens(TEXTS)).rows
    for row, (_, hidden) in zip(rows, states(model, service), strict=True):
        expected = F.normalize(F.linear(hidden[1:], **heads["colbert"]), dim=-1).numpy()
        assert np.abs(row - expected).max() <= 1e-5


def test_dense(service, model):
    rows = asyncio.run(service.model.embed(TEXTS, options=Options())).rows
    expected = F.normalize(torch.stack([hidden[0] for _, hidden in states(model, service)]), dim=-1).numpy()
    assert np.abs(rows - expected).max() <= 1e-5


def test_published_heads(folder, heads):
    """BAAI publishes them as torch.save writes them; safetensors beside them are preferred."""
    for name, tensors in heads.items():
        torch.save(tensors, folder / f"{name}_linear.pt")
    (folder / "sparse_linear.safetensors").unlink()
    torch.save({}, folder / "colbert_linear.pt")
    found = read(folder, "bge-m3").m3
    for name, tensors in heads.items():
        projection = getattr(found, name)
        assert np.array_equal(projection.weight, tensors["weight"].numpy())
        assert np.array_equal(projection.bias, tensors["bias"].numpy())


def test_heads_that_do_not_fit(folder):
    save_file({"weight": torch.ones(1, 32), "bias": torch.ones(1)}, folder / "sparse_linear.safetensors")
    with pytest.raises(SetupError, match=r"sparse_linear.safetensors must hold weight \[outputs, 48\]"):
        read(folder, "bge-m3")
