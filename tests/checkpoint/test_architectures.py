"""config.json as published, and as transformers 5 writes it, give one spec; refusals are one line."""

import numpy as np
import pytest

from bei.architectures.families import family
from bei.architectures.rope import rotary
from bei.architectures.spec import Layer
from bei.engines.rotary import RotaryTable
from bei.errors import SetupError
from tests.support.tiny_models import random_model

SIZES = {
    **{"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"intermediate_size": 128, "max_position_embeddings": 256},
}


def spec(model_type: str, **config):
    return family({"model_type": model_type, **SIZES, **config}).spec({"model_type": model_type, **SIZES, **config})


def test_nomic_as_published():
    published = {
        **{"model_type": "nomic_bert", "vocab_size": 100, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_inner": 128},
        **{"n_positions": 256, "activation_function": "swiglu", "layer_norm_epsilon": 1e-12, "prenorm": False},
        **{"rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False},
        **{"rotary_scaling_factor": None, "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False},
        **{"type_vocab_size": 2, "use_rms_norm": False},
    }
    modern = spec("nomic_bert", rope_parameters={"rope_type": "default", "rope_theta": 1000.0}, hidden_act="silu")
    assert family(published).spec(published) == modern


def test_gemma3_as_published():
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    parameters = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    }
    modern = spec("gemma3_text", layer_types=kinds, rope_parameters=parameters, sliding_window=9)
    older = spec(
        "gemma3_text",
        sliding_window_pattern=3,
        rope_theta=1_000_000.0,
        rope_local_base_freq=10_000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window=9,
    )
    assert older == modern
    assert [layer.window for layer in modern.layers] == [8, 8, None, 8]
    both_ways = spec("gemma3_text", layer_types=kinds, sliding_window=8, use_bidirectional_attention=True)
    assert (both_ways.causal, both_ways.layers[0].window) == (False, 4)


def test_modernbert_as_published():
    older = spec("modernbert", global_attn_every_n_layers=3, global_rope_theta=160_000.0, local_rope_theta=10_000.0)
    modern = spec(
        "modernbert",
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    )
    assert older == modern
    assert older.layers[0].norms == ("ffn_in",)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {
            **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_scaling_under_either_name(scaling):
    modern = {**scaling, "rope_type": scaling.get("rope_type", scaling.get("type")), "rope_theta": 500.0}
    assert spec("llama", rope_theta=500.0, rope_scaling=scaling) == spec("llama", rope_parameters=modern)


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_a_base_beside_the_parameters(key):
    """As transformers reads it: the value of the parameters, else of config.json, else of the class."""
    linear = {"rope_type": "linear", "factor": 2.0}
    expected = spec("llama", rope_parameters={**linear, "rope_theta": 500.0})
    assert spec("llama", rope_theta=500.0, **{key: linear}) == expected
    assert spec("llama", rope_theta=9.0, **{key: {**linear, "rope_theta": 500.0}}) == expected
    assert spec("llama", **{key: linear}) == spec("llama", rope_parameters={**linear, "rope_theta": 10_000.0})


def test_scaling_for_longer_texts_stretches_the_positions():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert spec("qwen3", rope_scaling=yarn).max_tokens == 512
    assert spec("llama", rope_scaling={"rope_type": "linear", "factor": 4.0}).max_tokens == 256


def test_the_rotary_of_gte():
    """NTKScalingRotaryEmbedding of its modeling code, by hand."""
    config = {"rope_theta": 100.0, "rope_scaling": {"type": "ntk", "factor": 3.0}}
    expected = 1 / (300.0 ** (np.arange(0, 8, 2) / 8)) / 3 ** (2 / 8)
    np.testing.assert_allclose(rotary(config, 8).frequencies, expected, rtol=1e-6)
    mixed = {"rope_theta": 100.0, "rope_scaling": {"type": "ntk", "factor": 3.0, "mixed_b": 0.6}}
    stretch = np.exp(np.log(3.0) / 4**0.6 * np.arange(1, 5) ** 0.6)
    np.testing.assert_allclose(
        rotary(mixed, 8).frequencies, 1 / (100.0 ** (np.arange(0, 8, 2) / 8)) / stretch, rtol=1e-6
    )


def test_a_dynamic_rotary_depends_on_its_own_sequence_only():
    config = {"max_position_embeddings": 32, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    table = RotaryTable(rotary(config, 8))
    lengths = np.repeat([10, 40], [10, 40])
    positions = np.concatenate([np.arange(10), np.arange(40)])
    together = table.rows(positions, lengths)
    np.testing.assert_array_equal(together[:10], table.rows(positions[:10], lengths[:10]))
    np.testing.assert_array_equal(together[10:], table.rows(positions[10:], lengths[10:]))
    assert np.abs(together[10:20] - together[:10]).max() > 1e-3


@pytest.mark.parametrize("model_type", ["gemma3_text", "olmo3", "modernbert", "modernbert-decoder"])
def test_angles_without_their_types_of_layers_are_refused(model_type):
    """transformers passes over them."""
    with pytest.raises(SetupError, match="rope_parameters must have a part for each type of layer"):
        spec(model_type, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0})


def test_bidirectional_variants():
    assert spec("llama").causal
    assert not spec("llama", is_causal=False).causal
    assert not spec("qwen2", architectures=["Qwen2BidirectionalModel"]).causal
    assert not spec("llama_bidirec").causal
    assert family({"model_type": "llama_bidirec"}).pooling.modes == ("mean",)


@pytest.mark.parametrize("model_type", ["gpt_neo", "bloom", "lfm2"])
@pytest.mark.parametrize("changes", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_an_architecture_without_a_bidirectional_variant_refuses_one(model_type, changes):
    config = random_model(model_type).config.to_dict()
    assert family(config).spec(config).causal
    with pytest.raises(SetupError, match=f"config.json: a bidirectional {model_type} is not supported: "):
        family(config).spec({**config, **changes})


def test_windows():
    assert spec("mistral", sliding_window=9).layers[0].window == 8
    assert spec("mistral", sliding_window=None).layers[0].window is None
    windows = [layer.window for layer in spec("gemma2", sliding_window=9).layers]
    assert windows == [8, None, 8, None]
    some = spec("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=3)
    assert [layer.window for layer in some.layers] == [None, None, None, 4]
    assert spec("qwen2", use_sliding_window=False, sliding_window=5).layers[3] == Layer(
        some.layers[0].norms, None, some.layers[0].rotary
    )


@pytest.mark.parametrize(
    ("model_type", "config", "message"),
    [
        ("nomic_bert", {"num_experts": 8}, "num_experts without moe_every_n_layers"),
        ("nomic_bert", {"prenorm": True, "hidden_act": "silu"}, "prenorm True is not supported"),
        ("nomic_bert", {"activation_function": "relu"}, "activation_function 'relu'"),
        ("new", {"logn_attention_scale": True}, "logn_attention_scale"),
        ("new", {"position_embedding_type": "absolute"}, "position_embedding_type 'absolute'"),
        ("deberta-v2", {"conv_kernel_size": 4}, "conv_kernel_size 4"),
        ("deberta-v2", {"conv_kernel_size": 3, "conv_groups": 5}, "conv_groups 5 does not divide hidden_size"),
        ("deberta", {"talking_head": True}, "talking_head True"),
        ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope scaling 'longrope'"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope scaling 'linear' lacks 'factor'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("qwen3", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ("llama", {"hidden_act": "xielu"}, "activation 'xielu'"),
        ("mixtral", {}, "model_type 'mixtral' is not supported"),
    ],
)
def test_refusals_name_the_key(model_type, config, message):
    with pytest.raises(SetupError, match=message):
        spec(model_type, **config)
