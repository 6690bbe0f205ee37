"""JinaBERT v2 has no class in transformers, so its layers are written out here from its paper (arXiv:2310.19923) and
ALiBi's (arXiv:2108.12409), for one unpadded sequence."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from bei.checkpoint.load import read
from bei.engines.base import Batch
from tests.support.parity import cosines, sequences
from tests.support.tiny_models import VOCAB, word_pieces, write_json, write_modules

HIDDEN, INNER, LAYERS = 48, 80, 2
ACTIVATIONS = {"geglu": F.gelu, "reglu": F.relu}


def shapes() -> dict[str, tuple[int, ...]]:
    norms, linears = ["embeddings.LayerNorm"], {}
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.mlp.layernorm"]
        linears |= {f"{layer}.attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")}
        linears |= {f"{layer}.attention.output.dense": (HIDDEN, HIDDEN), f"{layer}.mlp.wo": (HIDDEN, INNER)}
    return {
        "embeddings.word_embeddings.weight": (len(VOCAB), HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        **{f"encoder.layer.{i}.mlp.gated_layers.weight": (2 * INNER, HIDDEN) for i in range(LAYERS)},
        **{f"{name}.{part}": (HIDDEN,) for name in norms for part in ("weight", "bias")},
        **{f"{name}.weight": shape for name, shape in linears.items()},
        **{f"{name}.bias": shape[:1] for name, shape in linears.items()},
    }


def slopes(heads: int) -> list[float]:
    """ALiBi's own code, get_slopes."""
    if heads & (heads - 1) == 0:
        start = 2 ** (-8 / heads)
        return [start ** (i + 1) for i in range(heads)]
    whole = 1 << (heads.bit_length() - 1)
    return slopes(whole) + slopes(2 * whole)[0::2][: heads - whole]


def forward(w: dict[str, torch.Tensor], ids: list[int], heads: int, kind: str) -> torch.Tensor:
    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (HIDDEN,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    x = norm(
        "embeddings.LayerNorm",
        w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0],
    )
    at = torch.arange(len(ids))
    bias = -torch.tensor(slopes(heads))[:, None, None] * (at[:, None] - at).abs()
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        parts = (linear(f"{layer}.attention.self.{part}", x) for part in ("query", "key", "value"))
        q, k, v = (part.view(len(ids), heads, -1).transpose(0, 1) for part in parts)
        scores = q @ k.transpose(1, 2) / (HIDDEN // heads) ** 0.5 + bias
        context = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(ids), HIDDEN)
        out = linear(f"{layer}.attention.output.dense", context)
        x = norm(f"{layer}.attention.output.LayerNorm", x + out)
        gate, up = linear(f"{layer}.mlp.gated_layers", x).split(INNER, -1)
        x = norm(f"{layer}.mlp.layernorm", x + linear(f"{layer}.mlp.wo", ACTIVATIONS[kind](gate) * up))
    return x


def save(folder, weights, heads, kind):
    config = {
        "model_type": "bert",
        "architectures": ["JinaBertModel"],
        "position_embedding_type": "alibi",
        "feed_forward_type": kind,
        "vocab_size": len(VOCAB),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "intermediate_size": INNER,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "emb_pooler": "mean",
    }
    write_json(folder / "config.json", config)
    save_file(weights, folder / "model.safetensors")
    word_pieces().save(str(folder / "tokenizer.json"))
    write_modules(folder, {"Transformer": "", "Pooling": "1_Pooling"})
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    return folder


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("heads", "kind"), [(4, "geglu"), (6, "geglu"), (12, "reglu"), (1, "geglu")])
def test_states_equal_the_paper(make, tmp_path, seed, heads, kind):
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes().items()}
    weights |= {name: 1 + w for name, w in weights.items() if "orm.weight" in name}
    checkpoint, ids = read(save(tmp_path, weights, heads, kind), "jina"), sequences(seed)
    states = make(checkpoint, precision="fp32").run(Batch.pack(ids, row_kind="tokens"))
    expected = np.concatenate([forward(weights, s, heads, kind).numpy() for s in ids])
    assert np.abs(states - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    rounded = make(checkpoint, precision="bf16").run(Batch.pack(ids))
    assert cosines(make(checkpoint, precision="fp32").run(Batch.pack(ids)), rounded).min() >= 0.9995
