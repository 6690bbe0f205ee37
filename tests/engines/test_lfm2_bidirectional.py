"""LFM2.5's encoders have no class in transformers: they are its LFM2 without the causal mask, and with convolutions
around each token, which are written out here."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from bei.checkpoint.load import read
from bei.engines.base import Batch
from tests.support.parity import COLBERT, cosines, reference, sequences
from tests.support.tiny_models import random_model, save, write_json


def convolve(conv, states: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    """states: [1, tokens, hidden]; seen: [1, tokens], 1 for a token that is not padding."""
    states = states if seen is None else states * seen[..., None]
    b, c, x = conv.in_proj(states).transpose(1, 2).chunk(3, 1)
    taps = conv.conv.weight
    near = F.conv1d(b * x, taps, padding=taps.shape[-1] // 2, groups=taps.shape[0])[..., : states.shape[1]]
    return conv.out_proj((c * near).transpose(1, 2))


def bidirectional(**options) -> torch.nn.Module:
    model = random_model("lfm2", is_causal=False, **options)
    for layer in model.layers:
        if not layer.is_attention_layer:
            conv = layer.conv
            conv.forward = lambda hidden_states, attention_mask=None, conv=conv, **_: convolve(
                conv, hidden_states, attention_mask
            )
    return model


@pytest.fixture
def encoder(tmp_path):
    """The model, and its folder as it is published."""

    def made(**options):
        model = bidirectional(**options)
        folder = save(tmp_path, model, pooling={"pooling_mode": "cls"})
        stated = {key: value for key, value in model.config.to_dict().items() if key != "is_causal"}
        own = {"AutoModel": "modeling_lfm2_bidirectional.Lfm2BidirectionalModel"}
        write_json(folder / "config.json", stated | {"architectures": ["Lfm2BidirectionalModel"], "auto_map": own})
        return model, folder

    return made


@pytest.mark.parametrize("taps", [3, 4])
def test_states(make, encoder, taps, caplog):
    model, folder = encoder(conv_L_cache=taps)
    checkpoint, ids = read(folder, "LFM2.5-Embedding"), sequences()
    engine, expected = make(checkpoint, precision="fp32"), reference(model, ids)
    states = engine.run(Batch.pack(ids, row_kind="tokens"))
    assert np.abs(states - expected).max() <= 2e-5 * np.abs(expected).max()
    rows = engine.run(Batch.pack(ids[::-1]))[::-1]
    firsts = expected[np.cumsum([0, *map(len, ids[:-1])])]
    assert np.abs(rows - firsts).max() <= 2e-5 * np.abs(expected).max()
    rounded = make(checkpoint, precision="bf16").run(Batch.pack(ids))
    assert cosines(rounded, firsts).min() >= 0.998  # the state of one token, not a mean
    assert cosines(rounded, firsts).mean() >= 0.9995
    assert "code of its own" not in caplog.text


def test_tokens_that_are_not_attended_to_give_nothing(make, encoder):
    model, folder = encoder()
    checkpoint = replace(read(folder, "m"), late_interaction=COLBERT)
    ids, attended = [[2, 7, 8, 4, 4, 4], [2, 9, 4, 4, 4, 4], [2, 7, 8, 9, 10, 3], [2, 3]], [3, 2, None, None]
    rows = make(checkpoint, precision="fp32").run(Batch.pack(ids, attended=attended, row_kind="tokens"))
    expected = reference(model, ids, attended)
    assert np.abs(rows - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("prefix", ["model.", "lfm2."])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "a matrix of its own"])
def test_the_head_of_a_masked_language_model(make, encoder, tied, prefix):
    """SPLADE's rows over the vocabulary: the matrix of token embeddings, or the head's."""
    model, folder = encoder()
    torch.manual_seed(3)
    words = model.embed_tokens.weight.data if tied else torch.randn_like(model.embed_tokens.weight.data)
    tensors = {f"{prefix}{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors if tied else {**tensors, "lm_head.weight": words}, folder / "model.safetensors")
    (folder / "modules.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "architectures": ["Lfm2BidirectionalForMaskedLM"]})
    checkpoint, ids = read(folder, "LFM2.5-Encoder", pooling="splade"), sequences()
    rows = make(checkpoint, precision="fp32").run(Batch.pack(ids))
    logits = reference(model, ids) @ words.numpy().T
    ends = np.cumsum(list(map(len, ids)))
    expected = np.stack([np.log1p(np.maximum(part, 0)).max(0) for part in np.split(logits, ends[:-1])])
    assert np.abs(rows - expected).max() <= 2e-5 * np.abs(expected).max()
