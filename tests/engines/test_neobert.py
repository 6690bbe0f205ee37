"""NeoBERT has no class in transformers, so its layers are written out here from its paper (arXiv:2502.19587) and from
its published code's names, for one unpadded sequence."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from bei.checkpoint.load import read
from bei.engines.base import Batch
from bei.errors import SetupError
from tests.support.parity import cosines, sequences
from tests.support.tiny_models import VOCAB, word_pieces, write_json, write_modules

HIDDEN, LAYERS, HEADS, STATED, INNER = 48, 3, 4, 100, 72  # 2/3 of 100 is 66; the next multiple of 8
Weights = dict[str, torch.Tensor]


def random_weights(seed: int, labels: int = 2) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.encoder.weight": (len(VOCAB), HIDDEN), "model.layer_norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        layer = f"model.transformer_encoder.{i}"
        shapes |= {f"{layer}.{norm}.weight": (HIDDEN,) for norm in ("attention_norm", "ffn_norm")}
        shapes |= {f"{layer}.qkv.weight": (3 * HIDDEN, HIDDEN), f"{layer}.wo.weight": (HIDDEN, HIDDEN)}
        shapes |= {f"{layer}.ffn.w12.weight": (2 * INNER, HIDDEN), f"{layer}.ffn.w3.weight": (HIDDEN, INNER)}
    shapes |= {"decoder.weight": (len(VOCAB), HIDDEN), "decoder.bias": (len(VOCAB),)}
    shapes |= {"dense.weight": (HIDDEN, HIDDEN), "dense.bias": (HIDDEN,)}
    shapes |= {"classifier.weight": (labels, HIDDEN), "classifier.bias": (labels,)}
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: 1 + w if "norm" in name else w for name, w in weights.items()}


def rotated(x: torch.Tensor) -> torch.Tensor:
    """x: [T, heads, size], each neighboring pair as a complex number."""
    size = x.shape[-1]
    angles = torch.outer(torch.arange(len(x)).float(), 10_000.0 ** -(torch.arange(0, size, 2) / size))
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(turned).flatten(2)


def forward(w: Weights, ids: list[int]) -> torch.Tensor:
    x = w["model.encoder.weight"][ids]
    for i in range(LAYERS):
        part = {name: w[f"model.transformer_encoder.{i}.{name}.weight"] for name in ("qkv", "wo", "ffn.w12", "ffn.w3")}
        norms = [w[f"model.transformer_encoder.{i}.{name}.weight"] for name in ("attention_norm", "ffn_norm")]
        heads = F.linear(F.rms_norm(x, (HIDDEN,), norms[0], 1e-5), part["qkv"]).view(len(ids), HEADS, -1)
        q, k, v = heads.chunk(3, -1)
        q, k, v = (of.transpose(0, 1) for of in (rotated(q), rotated(k), v))
        scores = (q @ k.transpose(1, 2) / (HIDDEN // HEADS) ** 0.5).softmax(-1)
        x = x + F.linear((scores @ v).transpose(0, 1).reshape(len(ids), HIDDEN), part["wo"])
        gate, up = F.linear(F.rms_norm(x, (HIDDEN,), norms[1], 1e-5), part["ffn.w12"]).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, part["ffn.w3"])
    return F.rms_norm(x, (HIDDEN,), w["model.layer_norm.weight"], 1e-5)


def save(folder, weights: Weights, head: str = "LMHead", **fields):
    config = {
        **{"model_type": "neobert", "architectures": [f"NeoBERT{head}"], "vocab_size": len(VOCAB), "norm_eps": 1e-5},
        **{"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "max_length": 64},
        **{"intermediate_size": STATED, "auto_map": {"AutoModel": "model.NeoBERT"}, **fields},
    }
    write_json(folder / "config.json", config)
    save_file(weights, folder / "model.safetensors")
    word_pieces().save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("seed", range(3))
def test_states_equal_the_paper(make, tmp_path, seed):
    weights = random_weights(seed)
    folder = save(tmp_path, weights)
    write_modules(folder, {"Transformer": "", "Pooling": "1_Pooling"})
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    checkpoint, ids = read(folder, "neobert"), sequences(seed)
    engine = make(checkpoint, precision="fp32")
    states = engine.run(Batch.pack(ids, row_kind="tokens"))
    expected = np.concatenate([forward(weights, s).numpy() for s in ids])
    assert checkpoint.max_tokens == 64
    assert np.abs(states - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    rounded = make(checkpoint, precision="bf16").run(Batch.pack(ids))
    assert cosines(engine.run(Batch.pack(ids)), rounded).min() >= 0.9995


def test_a_classifier(make, tmp_path):
    w, ids = random_weights(0), sequences()
    checkpoint = read(save(tmp_path, w, "ForSequenceClassification", id2label={"0": "no", "1": "yes"}), "neobert")
    firsts = torch.stack([forward(w, s)[0] for s in ids])
    hidden = torch.tanh(F.linear(firsts, w["dense.weight"], w["dense.bias"]))
    expected = F.linear(hidden, w["classifier.weight"], w["classifier.bias"]).numpy()
    assert np.abs(make(checkpoint, precision="fp32").run(Batch.pack(ids)) - expected).max() <= 2e-5


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"hidden_act": "gelu"}, "hidden_act 'gelu'"), ({"rope": False}, "rope False"), ({"ngpt": True}, "ngpt True")],
)
def test_variants_are_refused_by_name(tmp_path, fields, message):
    with pytest.raises(SetupError, match=message):
        read(save(tmp_path, random_weights(0), **fields), "neobert")
