"""Every key of a config.json is read, refused, or known to change nothing: for the classes that transformers has for
our families, and for configs as their authors publish them. Any other key would be served wrongly in silence."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import transformers

from bei.architectures import families
from bei.architectures.config import stated_pooling
from bei.architectures.family import ScoreTokens
from bei.architectures.limits import check_counts
from bei.architectures.spec import EncoderSpec
from bei.checkpoint import own_code
from bei.checkpoint.reranking import scoring_head
from bei.checkpoint.task import head_kind, labels, scoring
from bei.errors import SetupError
from tests.support.tiny_models import CAUSAL, FAMILIES, random_model

TRAINING = "of training alone"
NAMES = "said elsewhere, where it is read: tokens by tokenizer.json, labels by id2label, types by the tensors"
RUNNING = "how transformers runs a model, not what it computes"
UNUSED = "of a head or an option that is not served"
OLDER = "an older word, which layer_types overrule"
WITHOUT_EFFECT = {
    **dict.fromkeys(
        (
            *(
                "attention_dropout",
                "attention_probs_dropout_prob",
                "classifier_dropout",
                "classifier_dropout_prob",
                "dropout",
                "embedding_dropout",
            ),
            *("hidden_dropout_prob", "mlp_dropout", "pooler_dropout", "qa_dropout", "seq_classif_dropout"),
            *("summary_last_dropout", "initializer_range", "initializer_cutoff_factor", "sparse_pred_ignore_index"),
            *("attn_pdrop", "embd_pdrop", "resid_pdrop", "fused_dropout_add_ln", "fused_bias_fc", "use_xentropy"),
            *("classifier_init_range", "decoder_init_range", "embedding_init_range"),
            *("activation_dropout", "classif_dropout", "encoder_layerdrop", "decoder_layerdrop"),
            *("lora_dropout_p", "lora_main_params_trainable", "use_reentrant"),
            *("sparse_prediction", "pretraining_tp", "gradient_checkpointing", "layerdrop", "init_std"),
            *("hidden_dropout", "residual_dropout", "summary_first_dropout", "embed_dropout", "resid_dropout"),
            *("router_aux_loss_coef", "moe_resid_pdrop", "dropout_rate", "initializer_factor"),
        ),
        TRAINING,
    ),
    **dict.fromkeys(
        (
            *(
                "bos_token_id",
                "cls_token_id",
                "eos_token_id",
                "mask_token_id",
                "pad_token_id",
                "sep_token_id",
                "label2id",
            ),
            *("dtype", "transformers_version", "_name_or_path", "tie_word_embeddings", "task_type_vocab_size"),
        ),
        NAMES,
    ),
    **dict.fromkeys(
        (
            *("chunk_size_feed_forward", "deterministic_flash_attn", "output_attentions", "output_hidden_states"),
            *("return_dict", "use_cache", "use_flash_attn", "use_memory_efficient_attention", "unpad_inputs"),
            *("attn_implementation", "reorder_and_upcast_attn", "pack_qkv", "pad_vocab_size_multiple"),
            *("output_router_logits", "moe_impl"),
            *("mem_len", "reuse_len", "use_mems_eval", "use_mems_train"),
            *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "slow_but_exact"),
        ),
        RUNNING,
    ),
    **dict.fromkeys(
        (
            *("add_cross_attention", "is_encoder_decoder", "legacy", "pooler_hidden_size", "sinusoidal_pos_embds"),
            *("summary_activation", "summary_type", "summary_use_proj", "summary_proj_to_labels"),
            *("logn_attention_clip1", "output_past", "matryoshka_dimensions", "truncate_dim", "task_instructions"),
            *("forced_eos_token_id", "start_n_top", "end_n_top", "same_length"),
            *("vocab_list", "esmfold_config", "kwargs", "trust_remote_code", "pretrained_model_name_or_path"),
            *("lora_alpha", "lora_rank", "load_trained_adapters", "add_pooling_layer"),
            *("decoder_start_token_id", "num_decoder_layers", "scale_decoder_outputs"),
        ),
        UNUSED,
    ),
    **dict.fromkeys(
        ("sliding_window_pattern", "_sliding_window_pattern", "max_window_layers", "no_rope_layer_interval"), OLDER
    ),
}
SIZES = {
    **{"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"intermediate_size": 128, "max_position_embeddings": 256},
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
PUBLISHED: dict[str, dict[str, Any]] = {
    "nomic-embed-text-v1.5": {
        **{"model_type": "nomic_bert", "vocab_size": 100, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_inner": 128},
        **{"n_positions": 256, "activation_function": "swiglu", "layer_norm_epsilon": 1e-12, "prenorm": False},
        **{"rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "causal": False},
        **{
            "rotary_scaling_factor": 2.0,
            "max_trained_positions": 128,
            "rotary_emb_scale_base": None,
            "attn_pdrop": 0.1,
        },
        **{"qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "type_vocab_size": 2},
        **{"use_rms_norm": False, "parallel_block": False, "scale_attn_weights": True, "use_flash_attn": True},
        **{"scale_attn_by_inverse_layer_idx": False, "fused_bias_fc": True, "num_experts": 0, "use_xentropy": True},
        **{"reorder_and_upcast_attn": False, "pad_vocab_size_multiple": 64, "fused_dropout_add_ln": True},
        **{"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.1},
    },
    "nomic-embed-text-v2-moe": {
        **{"model_type": "nomic_bert", "vocab_size": 100, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_inner": 128},
        **{"n_positions": 256, "max_trained_positions": 256, "type_vocab_size": 1, "activation_function": "gelu"},
        **{"rotary_emb_base": 10_000, "rotary_emb_fraction": 1.0, "rotary_scaling_factor": None, "prenorm": False},
        **{"layer_norm_epsilon": 1e-5, "qkv_proj_bias": True, "mlp_fc1_bias": True, "mlp_fc2_bias": True},
        **{"num_experts": 8, "moe_top_k": 2, "moe_every_n_layers": 2, "moe_normalize_expert_weights": False},
        **{"num_shared_experts": 0, "expert_choice_router": False, "ffn_div": 1, "moe_impl": "megablocks"},
        **{"moe_resid_pdrop": 0.0, "router_aux_loss_coef": 0.1, "add_pooling_layer": False},
    },
    "gte-multilingual-base": {
        **{
            "model_type": "new",
            **SIZES,
            "layer_norm_type": "layer_norm",
            "layer_norm_eps": 1e-12,
            "hidden_act": "gelu",
            "pack_qkv": True,
        },
        **{"rope_theta": 20_000, "rope_scaling": {"type": "ntk", "factor": 8.0}, "type_vocab_size": 1},
        **{"logn_attention_scale": False, "logn_attention_clip1": False, "position_embedding_type": "rope"},
        **{"unpad_inputs": False, "use_memory_efficient_attention": False},
    },
    "jina-embeddings-v2": {
        **{"model_type": "bert", **SIZES, "position_embedding_type": "alibi", "feed_forward_type": "geglu"},
        **{"emb_pooler": "mean", "attn_implementation": None, "gradient_checkpointing": False, "hidden_act": "gelu"},
        **{"layer_norm_eps": 1e-12},
    },
    "jina-embeddings-v2-base-code": {
        **{"model_type": "bert", **SIZES, "position_embedding_type": "alibi", "feed_forward_type": "geglu"},
        **{"emb_pooler": "mean", "attn_implementation": "torch", "gradient_checkpointing": False, "hidden_act": "gelu"},
        **{"layer_norm_eps": 1e-12, "_name_or_path": "jinaai/jina-bert-v2-qk-post-norm"},
    },
    "jina-embeddings-v3": {
        **{"model_type": "xlm-roberta", **SIZES, "position_embedding_type": "rotary", "rotary_emb_base": 20000.0},
        **{"use_flash_attn": True, "use_reentrant": False, "output_past": True, "truncate_dim": None},
        **{"matryoshka_dimensions": [32, 64], "layer_norm_eps": 1e-5, "type_vocab_size": 1, "emb_pooler": "mean"},
        **{"lora_adaptations": None, "lora_alpha": 1, "lora_rank": 4, "lora_dropout_p": 0.0},
        **{"lora_main_params_trainable": False, "load_trained_adapters": False, "task_instructions": None},
    },
    "jina-reranker-v2-base-multilingual": {
        **{"model_type": "xlm-roberta", **SIZES, "position_embedding_type": "absolute", "use_flash_attn": True},
        **{"layer_norm_eps": 1e-5, "type_vocab_size": 1, "pad_token_id": 1, "id2label": {"0": "LABEL_0"}},
        **{"architectures": ["XLMRobertaForSequenceClassification"]},
    },
    "llama-nemotron-rerank": {
        **{"model_type": "llama_bidirec", **SIZES, "pooling": "avg", "temperature": 1.0, "rms_norm_eps": 1e-5},
        **{"rope_theta": 5e5, "attention_bias": False, "mlp_bias": False, "num_key_value_heads": 2, "head_dim": 16},
        "rope_scaling": {
            **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 64,
        },
    },
    "Nemotron-3-Embed": {
        **{"model_type": "ministral3", **SIZES, "is_causal": False, "num_key_value_heads": 2, "head_dim": 16},
        "rope_parameters": {
            **{"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16},
            **{"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
        },
    },
    "Ministral3Bidirectional": {
        **{"model_type": "ministral3_bidirec", **SIZES, "pooling": "avg", "temperature": 1.0, "head_dim": 16},
        **{"num_key_value_heads": 2, "rms_norm_eps": 1e-5},
        "rope_parameters": {
            **{"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16},
            "llama_4_scaling_beta": 0.1,
        },
    },
    "gte-Qwen2": {"model_type": "qwen2", **SIZES, "is_causal": False, "rope_theta": 1e6, "num_key_value_heads": 2},
    "voyage-4-nano": {
        **{"model_type": "qwen3", **SIZES, "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1e6},
        **{"use_bidirectional_attention": True, "num_labels": 96, "attention_bias": False, "rms_norm_eps": 1e-6},
    },
    "pplx-embed-v1": {
        **{"model_type": "bidirectional_pplx_qwen3", **SIZES, "num_key_value_heads": 2, "head_dim": 16},
        **{"attention_bias": False, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "use_bidirectional_attention": True},
    },
    "a windowed Qwen2": {"model_type": "qwen2", **SIZES, **WINDOWS},
    "a windowed Qwen3": {"model_type": "qwen3", **SIZES, **WINDOWS, "head_dim": 16},
    "embeddinggemma": {
        **{"model_type": "gemma3_text", **SIZES, "head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 2},
        **{"use_bidirectional_attention": True, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rms_norm_eps": 1e-6},
    },
    "bart-large-mnli": {
        **{"model_type": "bart", "vocab_size": 100, "d_model": 64, "max_position_embeddings": 256},
        **{"encoder_layers": 2, "encoder_ffn_dim": 128, "encoder_attention_heads": 4, "encoder_layerdrop": 0.0},
        **{"decoder_layers": 3, "decoder_ffn_dim": 128, "decoder_attention_heads": 4, "decoder_layerdrop": 0.0},
        **{"activation_function": "gelu", "activation_dropout": 0.0, "classif_dropout": 0.0, "num_hidden_layers": 2},
        **{"scale_embedding": False, "decoder_start_token_id": 2, "forced_eos_token_id": 2, "eos_token_id": 2},
        **{"normalize_before": False, "add_final_layer_norm": False, "normalize_embedding": True},
        **{"static_position_embeddings": False, "is_encoder_decoder": True, "init_std": 0.02},
        **{"architectures": ["BartForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}},
    },
    "NeoBERT": {
        **{"model_type": "neobert", **SIZES, "max_position_embeddings": None, "max_length": 256, "dim_head": 16},
        **{"norm_eps": 1e-5, "classifier_init_range": 0.02, "decoder_init_range": 0.02, "embedding_init_range": 0.02},
        **{"kwargs": {"trust_remote_code": True}, "trust_remote_code": True},
        **{"pretrained_model_name_or_path": "google-bert/bert-base-uncased"},
    },
    "deberta-v2-xlarge": {
        **{"model_type": "deberta-v2", **SIZES, "attention_head_size": 16, "hidden_act": "gelu", "type_vocab_size": 0},
        **{"conv_act": "gelu", "conv_kernel_size": 3, "relative_attention": True, "position_buckets": 8},
        **{"norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7},
        **{"max_relative_positions": -1, "position_biased_input": False},
    },
    "ModernBERT": {
        **{"model_type": "modernbert", **SIZES, "global_attn_every_n_layers": 3, "global_rope_theta": 16e4},
        **{"local_rope_theta": 1e4, "local_attention": 8, "norm_eps": 1e-5, "norm_bias": False},
    },
}
OVERRULED = {
    ("jina-embeddings-v2", "hidden_act"),  # by feed_forward_type
    ("jina-embeddings-v2-base-code", "hidden_act"),
    ("nomic-embed-text-v2-moe", "max_trained_positions"),  # of no scaling
    ("modernbert-decoder", "local_attention"),  # by sliding_window
    ("modernbert-decoder", "decoder_bias"),  # of a head that is not served
    ("lfm2", "full_attn_idxs"),  # by layer_types
    ("gpt_neox", "is_decoder"),  # it always is one
    ("mobilebert", "layer_norm_eps"),  # its norms divide by nothing
    ("gpt_bigcode", "num_key_value_heads"),  # by multi_query
    ("gpt_neo", "attention_layers"),  # by attention_types
    ("phi3", "rope_parameters.original_max_position_embeddings"),  # by the key of that name beside rope_parameters
}
OF_A_PART = {"architectures", "final_logit_softcapping", "is_decoder", "model_type", "problem_type", "id2label"}
"""Keys that change nothing in the part of an encoder, which has no head."""
OF_A_WHOLE = {
    "t5gemma": {"classifier_dropout_rate", "vocab_size"},  # its encoder has its own
    "embedding_gemma2": {f"{kind}_token_{end}" for kind in ("boa", "boi", "eoa", "eoi") for end in ("id", "index")}
    | {"audio_token_id", "image_token_id", "video_token_id"},
}
"""Keys beside the part that is served which change nothing: of images, sounds and heads."""
SAVED_WITH = {
    "big_bird": {"block_size": 4},
    **{"qwen2": WINDOWS, "qwen3": WINDOWS, "smollm3": WINDOWS},
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": 8, "mlp_only_layers": [1]},
}
SHAPES = {"num_key_value_heads", "head_dim", "word_embed_proj_dim"}
"""Sizes that contradict the tensors' shapes where they are wrong."""
KNOWN_VALUES = {
    **{"problem_type": ["regression"], "max_position_embeddings": [32]},
    **{"beta_fast": [0.5, 0.05], "beta_slow": [0.01]},
}
DERIVED = {
    ("roformer", "embedding_size"),
    ("mobilebert", "true_hidden_size"),
    ("xlnet", "d_head"),
    ("modernbert-decoder", "sliding_window"),
}  # from other sizes, unless stated


@cache
def saved(model_type: str) -> str:
    """config.json as transformers saves it."""
    model = random_model(model_type, **SAVED_WITH.get(model_type, {}))
    return json.dumps({**model.config.to_dict(), "architectures": [type(model).__name__]})


def outcome(config: dict[str, Any]) -> str:
    """Everything that we derive from a config.json, or the refusal."""
    try:
        check_counts(config)
        family = families.family(config)
        spec: EncoderSpec = family.spec(config)
        own_code.check(config, spec, None)
        made = [spec, dict(family.tensors(config, spec)), head_kind(config), stated_pooling(config)]
        made += [family.token_layers(config, spec)]
        made += [family.head(kind, config, spec, 2) for kind in family.heads]
        made += [scoring(config, task) for task in ("reranker", "classifier")]
        made += [labels(config)] if config.get("id2label") else []
    except SetupError as refusal:
        return f"refused: {refusal}"
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as broken:  # as load.read has it
        return f"refused: {broken}"
    return repr([*made, scored(config, spec) if config["model_type"] in CAUSAL else None])


def scored(config: dict[str, Any], spec: EncoderSpec) -> str:
    """The same for a language model that reranks."""
    try:
        return repr(scoring_head(config, spec, ScoreTokens(1)))
    except SetupError as refusal:
        return str(refusal)


def others(value: Any) -> Iterator[Any]:
    """Other values of its type; of any type for a key without one."""
    match value:
        case None:
            yield from (True, 3, 0.5, "strange", {"strange": 1.0}, ["strange"])
        case bool():
            yield not value
        case int():
            yield from (value + 9, value * 2 + 2)
        case float():
            yield value * 2 + 0.1
        case str():
            yield "strange"
        case list():
            yield from (["strange"] * max(1, len(value)), ["SomeForQuestionAnswering"])
        case dict():
            yield {key: next(others(of)) for key, of in value.items()} or {"strange": 1.0}


def ineffective(config: dict[str, Any]) -> set[str]:
    expected = outcome(config)
    assert not expected.startswith("refused"), expected
    return {
        key
        for key, value in config.items()
        if all(outcome({**config, key: other}) == expected for other in [*others(value), *KNOWN_VALUES.get(key, ())])
    }


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_key_of_transformers(model_type):
    overruled = {key for of, key in OVERRULED if of == model_type}
    assert ineffective(json.loads(saved(model_type))) <= set(WITHOUT_EFFECT) | overruled


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_as_published(name):
    assert ineffective(PUBLISHED[name]) <= set(WITHOUT_EFFECT) | {key for of, key in OVERRULED if of == name}


def changed(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The same with another value at a path of keys."""
    key, *rest = path
    return {**config, key: changed(config[key], tuple(rest), value) if rest else value}


def leaves(config: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each key within the dictionaries of a config.json, but for those that have no effect as a whole."""
    for key, value in config.items():
        if key in WITHOUT_EFFECT or key in OTHER_PARTS:
            continue
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        elif above:
            yield (*above, key), value


def nested_ineffective(config: dict[str, Any]) -> set[str]:
    expected = outcome(config)
    assert not expected.startswith("refused"), expected
    return {
        ".".join(path)
        for path, value in leaves(config)
        if all(
            outcome(changed(config, path, other)) == expected
            for other in [*others(value), *KNOWN_VALUES.get(path[-1], ())]
        )
    }


OTHER_PARTS = ("decoder", "vision_config", "audio_config")
"""Of an encoder that is served without them."""
T5GEMMA_ENCODER = {
    **{key: value for key, value in SIZES.items() if key != "max_position_embeddings"},
    **{"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "max_position_embeddings": 256},
}
COMPOSITES = {
    "t5gemma": lambda: transformers.T5GemmaConfig(encoder=T5GEMMA_ENCODER, decoder=T5GEMMA_ENCODER),
    "embedding_gemma2": lambda: transformers.EmbeddingGemma2Config(
        text_config=json.loads(saved("embedding_gemma2_text"))
    ),
}
"""Architectures whose sizes are in a part of config.json."""


def composite(name: str) -> dict[str, Any]:
    classes = {"t5gemma": "T5GemmaEncoderModel", "embedding_gemma2": "EmbeddingGemma2Model"}
    return json.loads(json.dumps(COMPOSITES[name]().to_dict())) | {"architectures": [classes[name]]}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_key_within_a_key_of_transformers(model_type):
    overruled = {path for of, path in OVERRULED if of == model_type}
    assert nested_ineffective(json.loads(saved(model_type))) <= overruled


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_within_a_key_as_published(name):
    assert nested_ineffective(PUBLISHED[name]) == set()


@pytest.mark.parametrize("name", COMPOSITES)
def test_every_key_of_a_part(name):
    config = composite(name)
    assert {path.split(".")[1] for path in nested_ineffective(config)} <= OF_A_PART
    assert ineffective(config) - {*WITHOUT_EFFECT, *OTHER_PARTS} <= OF_A_WHOLE[name]


def test_every_architecture_is_walked():
    configs = [*PUBLISHED.values(), *map(composite, COMPOSITES), *(json.loads(saved(of)) for of in FAMILIES)]
    walked = [families.family(config) for config in configs]
    assert [name for name, family in families.FAMILIES.items() if family not in walked] == []


def test_nothing_is_listed_that_is_read_or_that_nobody_writes():
    configs = [json.loads(saved(model_type)) for model_type in FAMILIES] + list(PUBLISHED.values())
    assert set().union(*map(ineffective, configs)) >= set(WITHOUT_EFFECT)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_silence_means_what_it_means_to_transformers(model_type):
    """A missing key has its class's default, or is required."""
    config = json.loads(saved(model_type))
    defaults = json.loads(json.dumps(type(random_model(model_type).config)().to_dict()))
    for key in config.keys() & defaults.keys() - SHAPES - {
        "layer_types",
        "no_rope_layers",
        "per_layer_config",
        "id2label",
        "architectures",
    }:
        if (model_type, key) in DERIVED:
            continue
        silent = outcome({of: value for of, value in config.items() if of != key})
        assert silent.startswith("refused") or silent == outcome({**config, key: defaults[key]}), key


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "gemma3_text", "modernbert"])
def test_kinds_of_layers(model_type):
    config = json.loads(saved(model_type))
    kinds = config["layer_types"]
    assert "chunked_attention" in outcome({**config, "layer_types": ["chunked_attention", *kinds[1:]]})
    assert "names 4 layers, num_hidden_layers 3" in outcome({**config, "layer_types": [*kinds, kinds[0]]})
