"""EmbeddingGemma 2 is published with towers for images and sounds; its text model is served."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.torch.engine import TorchEngine
from bei.errors import SetupError
from tests.support.parity import reference, sequences
from tests.support.tiny_models import random_model, save, write_json


@pytest.fixture
def published(tmp_path):
    """The text model, and a folder of the multimodal one that has it."""
    model = random_model("embedding_gemma2_text")
    folder = save(tmp_path, model)
    whole = transformers.EmbeddingGemma2Config(text_config=model.config.to_dict()).to_dict()
    write_json(folder / "config.json", whole | {"architectures": ["EmbeddingGemma2Model"], "vision_config": {}})
    stored = {f"language_model.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(stored | {"vision_tower.patch.weight": torch.ones(2)}, folder / "model.safetensors")
    return model, folder


def test_the_text_model_is_served(published):
    model, folder = published
    ids = sequences()
    engine = TorchEngine(read(folder, "embeddinggemma-2"), EngineOptions(precision="fp32"))
    states, expected = engine.run(Batch.pack(ids, row_kind="tokens")), reference(model, ids)
    assert np.abs(states - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"per_layer_config": {"1": {"head_dim": 20, "num_attention_heads": 2}}}, "num_attention_heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ],
)
def test_refusals(published, change, refusal):
    model, folder = published
    text = model.config.to_dict() | change
    write_json(folder / "config.json", {"model_type": "embedding_gemma2", "text_config": text})
    with pytest.raises(SetupError, match=refusal):
        read(folder, "m")
