"""nomic-embed-text-v2-moe has no class in transformers, so its layers are written out here from its paper
(arXiv:2502.07972) and MegaBlocks' layout (arXiv:2211.15841), for one unpadded sequence."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from bei.checkpoint.load import read
from bei.engines.base import Batch
from bei.errors import SetupError
from tests.support.parity import cosines, sequences
from tests.support.tiny_models import MEAN, VOCAB, word_pieces, write_json, write_modules

HIDDEN, INNER, LAYERS, HEADS = 48, 80, 4, 4
CONFIG = {
    **{"model_type": "nomic_bert", "architectures": ["NomicBertModel"], "vocab_size": len(VOCAB), "n_embd": HIDDEN},
    **{"n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": 64, "max_trained_positions": 64},
    **{"activation_function": "gelu", "layer_norm_epsilon": 1e-5, "type_vocab_size": 1, "prenorm": False},
    **{"rotary_emb_base": 10_000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "causal": False},
    **{"qkv_proj_bias": True, "mlp_fc1_bias": True, "mlp_fc2_bias": True, "rotary_scaling_factor": None},
    **{"num_experts": 8, "moe_top_k": 2, "moe_every_n_layers": 2, "moe_normalize_expert_weights": False},
    **{"num_shared_experts": 0, "expert_choice_router": False},
}
KINDS = [{}, {"activation_function": "gelu_new"}, {"num_experts": 3, "moe_top_k": 1}, {"moe_every_n_layers": 3}]
KINDS += [{"qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False}, {"num_experts": 0}]


def has_experts(config: dict, layer: int) -> bool:
    return bool(config["num_experts"]) and layer % config["moe_every_n_layers"] == 1


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    count, found = config["num_experts"], {"embeddings.word_embeddings.weight": (len(VOCAB), HIDDEN)}
    found |= {
        "embeddings.token_type_embeddings.weight": (1, HIDDEN),
        "emb_ln.weight": (HIDDEN,),
        "emb_ln.bias": (HIDDEN,),
    }
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}"
        found |= {f"{layer}.norm{n}.{part}": (HIDDEN,) for n in (1, 2) for part in ("weight", "bias")}
        linears = {"attn.Wqkv": (3 * HIDDEN, HIDDEN), "attn.out_proj": (HIDDEN, HIDDEN)}
        biased = config["qkv_proj_bias"]
        if has_experts(config, i):
            found |= {f"{layer}.mlp.experts.mlp.{w}": (count * INNER, HIDDEN) for w in ("w1", "w2")}
            found |= {f"{layer}.mlp.experts.bias": (HIDDEN,), f"{layer}.mlp.router.layer.weight": (count, HIDDEN)}
        else:
            linears |= {"mlp.fc1": (INNER, HIDDEN), "mlp.fc2": (HIDDEN, INNER)}
        found |= {f"{layer}.{name}.weight": shape for name, shape in linears.items()}
        found |= {f"{layer}.{name}.bias": shape[:1] for name, shape in linears.items() if biased}
    return found


def rotated(x: torch.Tensor) -> torch.Tensor:
    """x: [tokens, heads, size]"""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(len(x)).float(), 10_000 ** -(torch.arange(half) / half))[:, None]
    a, b = x.split(half, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def forward(w: dict[str, torch.Tensor], config: dict, ids: list[int]) -> torch.Tensor:
    def act(x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="none" if config["activation_function"] == "gelu" else "tanh")

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (HIDDEN,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def mixture(mlp: str, x: torch.Tensor) -> torch.Tensor:
        w1, w2 = (w[f"{mlp}.experts.mlp.{name}"].view(-1, INNER, HIDDEN) for name in ("w1", "w2"))
        shares = linear(f"{mlp}.router.layer", x).softmax(-1)
        rows = []
        for token, share in zip(x, shares, strict=True):
            row = w[f"{mlp}.experts.bias"].clone()
            for expert in share.argsort(descending=True)[: config["moe_top_k"]]:
                row += share[expert] * (act(token @ w1[expert].T) @ w2[expert])
            rows.append(row)
        return torch.stack(rows)

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm("emb_ln", x)
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}"
        q, k, v = linear(f"{layer}.attn.Wqkv", x).unflatten(-1, (3, HEADS, HIDDEN // HEADS)).unbind(1)
        q, k, v = (part.transpose(0, 1) for part in (rotated(q), rotated(k), v))
        context = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        x = norm(f"{layer}.norm1", x + linear(f"{layer}.attn.out_proj", context))
        if has_experts(config, i):
            x = norm(f"{layer}.norm2", x + mixture(f"{layer}.mlp", x))
        else:
            x = norm(f"{layer}.norm2", x + linear(f"{layer}.mlp.fc2", act(linear(f"{layer}.mlp.fc1", x))))
    return x


@pytest.fixture
def checkpoint(tmp_path):
    def make(seed: int = 0, **options):
        torch.manual_seed(seed)
        config = {**CONFIG, **options}
        weights = {name: 0.2 * torch.randn(shape) for name, shape in shapes(config).items()}
        save_file(weights, tmp_path / "model.safetensors")
        word_pieces().save(str(tmp_path / "tokenizer.json"))
        write_json(tmp_path / "config.json", config)
        write_modules(tmp_path, {"Transformer": "", "Pooling": "1_Pooling"})
        write_json(tmp_path / "1_Pooling" / "config.json", MEAN)
        return weights, read(tmp_path, "nomic-embed-text-v2-moe")

    return make


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", KINDS)
def test_states_equal_the_layers_written_out(make, checkpoint, options, seed):
    weights, read_back = checkpoint(seed, **options)
    engine = make(read_back, precision="fp32")
    expected = torch.cat([forward(weights, {**CONFIG, **options}, s) for s in sequences(seed)]).numpy()
    found = engine.run(Batch.pack(sequences(seed), row_kind="tokens"))
    assert np.abs(found - expected).max() <= 2e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_alone_shuffled_and_rounded(make, checkpoint, precision):
    weights, read_back = checkpoint()
    engine, ids = make(read_back, precision=precision), sequences()
    expected = np.stack([forward(weights, CONFIG, s).mean(0).numpy() for s in ids])
    order = np.random.default_rng(1).permutation(len(ids))
    limit = 1 - (1e-6 if precision == "fp32" else 5e-4)
    assert cosines(engine.run(Batch.pack([ids[i] for i in order])), expected[order]).min() >= limit
    assert cosines(np.concatenate([engine.run(Batch.pack([s])) for s in ids]), expected).min() >= limit


@pytest.mark.parametrize(
    "options",
    [
        *({"num_shared_experts": 1}, {"expert_choice_router": True}, {"moe_normalize_expert_weights": True}),
        {"activation_function": "swiglu"},
    ],
)
def test_other_mixtures_are_refused(checkpoint, options):
    with pytest.raises(SetupError, match=f"config.json: {next(iter(options))}"):
        checkpoint(**options)
