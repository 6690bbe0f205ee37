"""JinaBERT v2 has no class in transformers, so its layers are written out here from its paper (arXiv:2310.19923) and
ALiBi's (arXiv:2108.12409), for one unpadded sequence; and those of its code model from its published code."""

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


CODE = "jinaai/jina-bert-v2-qk-post-norm"


def of_code(name: str) -> str:
    """The name that the code model gives to a tensor."""
    places = {"attention.output.LayerNorm": "layer_norm_1", "mlp.layernorm": "layer_norm_2", "mlp.wo": "mlp.down_layer"}
    for ours, theirs in {**places, "mlp.gated_layers": "mlp.up_gated_layer"}.items():
        name = name.replace(ours, theirs)
    return name


def code_shapes() -> dict[str, tuple[int, ...]]:
    norms = ("attention.self.layer_norm_q", "attention.self.layer_norm_k", "attention.output.LayerNorm")
    layers = (f"encoder.layer.{i}" for i in range(LAYERS))
    added = (f"{layer}.{norm}.{part}" for layer in layers for norm in norms for part in ("weight", "bias"))
    return {**{of_code(name): shape for name, shape in shapes().items()}, **dict.fromkeys(added, (HIDDEN,))}


def code_forward(w: dict[str, torch.Tensor], ids: list[int], heads: int, kind: str) -> torch.Tensor:
    """The gate is the second half here, queries and keys are normed, and attention's input is added twice."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (HIDDEN,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    types = w["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", w["embeddings.word_embeddings.weight"][ids] + types)
    at = torch.arange(len(ids))
    bias = -torch.tensor(slopes(heads))[:, None, None] * (at[:, None] - at).abs()
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        attention = f"{layer}.attention.self"
        query = norm(f"{attention}.layer_norm_q", linear(f"{attention}.query", x))
        key = norm(f"{attention}.layer_norm_k", linear(f"{attention}.key", x))
        parts = (query, key, linear(f"{attention}.value", x))
        q, k, v = (part.view(len(ids), heads, -1).transpose(0, 1) for part in parts)
        scores = q @ k.transpose(1, 2) / (HIDDEN // heads) ** 0.5 + bias
        context = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(ids), HIDDEN)
        attended = linear(f"{layer}.attention.output.dense", context)
        attended = norm(f"{layer}.attention.output.LayerNorm", x + attended)
        x = norm(f"{layer}.layer_norm_1", x + attended)
        up, gate = linear(f"{layer}.mlp.up_gated_layer", x).split(INNER, -1)
        x = norm(f"{layer}.layer_norm_2", x + linear(f"{layer}.mlp.down_layer", ACTIVATIONS[kind](gate) * up))
    return x


def save(folder, weights, heads, kind, **fields):
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
        **fields,
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
    weights = random_weights(shapes(), seed)
    compare(make, save(tmp_path, weights, heads, kind), seed, lambda ids: forward(weights, ids, heads, kind))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("heads", "kind"), [(4, "geglu"), (6, "reglu")])
@pytest.mark.parametrize(
    "origin", [{"_name_or_path": CODE}, {"auto_map": {"AutoModel": f"{CODE}--modeling_bert.JinaBertModel"}}]
)
def test_states_equal_the_code_model(make, tmp_path, seed, heads, kind, origin):
    weights = random_weights(code_shapes(), seed)
    folder = save(tmp_path, weights, heads, kind, **origin)
    compare(make, folder, seed, lambda ids: code_forward(weights, ids, heads, kind))


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    norms = {name for name in weights if "norm" in name.lower() and name.endswith(".weight")}
    return {name: 1 + w if name in norms else w for name, w in weights.items()}


def compare(make, folder, seed, forward):
    checkpoint, ids = read(folder, "jina"), sequences(seed)
    states = make(checkpoint, precision="fp32").run(Batch.pack(ids, row_kind="tokens"))
    expected = np.concatenate([forward(s).numpy() for s in ids])
    assert np.abs(states - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    rounded = make(checkpoint, precision="bf16").run(Batch.pack(ids))
    assert cosines(make(checkpoint, precision="fp32").run(Batch.pack(ids)), rounded).min() >= 0.9995
