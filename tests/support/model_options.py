"""Options of the families and heads, which change the math of tiny random models."""

from bei.architectures import families
from tests.support.tiny_models import FAMILIES

DEFAULT = {"rope_type": "default", "rope_theta": 20.0}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "original_max_position_embeddings": 16}

BOTH_WAYS = {"is_causal": False, "sliding_window": 4}
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
LONG = {
    **{"rope_type": "longrope", "rope_theta": 100.0, "factor": 3.0, "partial_rotary_factor": 0.5},
    **{"short_factor": [1.0, 1.1, 1.2], "long_factor": [1.0, 2.0, 4.0]},
}


def rope(parameters: dict) -> dict:
    return {"rope_parameters": parameters}


OPTIONS = {
    "bert": [
        *({}, {"hidden_act": "gelu_new"}, {"num_attention_heads": 16}, {"num_attention_heads": 1, "hidden_size": 144}),
        *(
            {"hidden_size": 40, "intermediate_size": 70},
            {"hidden_act": "relu", "type_vocab_size": 1},
            {"layer_norm_eps": 1e-3},
        ),
        {"hidden_size": 45, "num_attention_heads": 3, "intermediate_size": 97},
    ],
    "roberta": [{}, {"pad_token_id": 0, "max_position_embeddings": 65}],
    "xlm-roberta-xl": [{}, {"hidden_act": "relu"}],
    "jina_embeddings_v3": [{}, rope({"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0})],
    "ernie": [{}, {"use_task_id": False}],
    "roformer": [{}, {"embedding_size": None}],
    "big_bird": [{}, {"attention_type": "original_full", "rescale_embeddings": True, "use_bias": False}],
    "esm": [
        *({}, {"token_dropout": False, "emb_layer_norm_before": True}),
        {"position_embedding_type": "absolute", "max_position_embeddings": 65},
    ],
    "albert": [{}, {"inner_group_num": 2, "num_hidden_groups": 1}, {"hidden_act": "gelu"}],
    "mobilebert": [
        *({}, {"num_feedforward_networks": 1, "hidden_act": "gelu", "type_vocab_size": 1}),
        {"num_attention_heads": 5, "intra_bottleneck_size": 25, "embedding_size": 21},
    ],
    "mpnet": [{}, {"relative_attention_num_buckets": 32, "num_attention_heads": 6}],
    "distilbert": [{}, {"activation": "relu"}, {"sinusoidal_pos_embds": True}],
    "electra": [{}, {"hidden_act": "silu"}, {"hidden_act": "tanh"}, {"embedding_size": 21}],
    "xlnet": [{}, {"clamp_len": 5, "ff_activation": "relu", "layer_norm_eps": 1e-3}],
    "deberta": [
        *({}, {"pos_att_type": "c2p"}, {"pos_att_type": ["p2c"]}, {"relative_attention": False}),
        *({"max_relative_positions": 16}, {"position_biased_input": True, "type_vocab_size": 2}),
    ],
    "deberta-v2": [
        *({"share_att_key": False}, {"share_att_key": False, "pos_att_type": ["p2c"]}),
        *({"conv_kernel_size": 3}, {"conv_kernel_size": 5, "conv_groups": 4, "conv_act": "gelu"}),
        {"conv_kernel_size": 3, "relative_attention": False, "norm_rel_ebd": "none"},
        *({}, {"pos_att_type": ["c2p"]}, {"pos_att_type": ["p2c"]}),
        *({"position_buckets": -1}, {"norm_rel_ebd": "none"}, {"position_biased_input": True, "type_vocab_size": 2}),
    ],
    "t5": [
        *({}, {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}, {"d_kv": 16}),
        *({"feed_forward_proj": "gated-gelu"}, {"feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-2}),
    ],
    "umt5": [{}, {"relative_attention_num_buckets": 8, "feed_forward_proj": "relu"}],
    "modernbert": [
        *({}, {"norm_bias": False}, {"local_attention": 64}, {"attention_bias": True, "mlp_bias": True}),
        *({"hidden_activation": "silu"}, {"layer_types": ["full_attention"] * 2 + ["sliding_attention"]}),
        rope({"full_attention": {"rope_type": "default", "rope_theta": 50.0}, "sliding_attention": DEFAULT}),
    ],
    "nomic_bert": [{}, {"hidden_act": "gelu"}, {"type_vocab_size": 1}],
    "gte": [{}, {"hidden_act": "relu"}, {"type_vocab_size": 2}, {"intermediate_size": 90}],
    "eurobert": [{}, {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}, rope(DEFAULT)],
    "llama": [
        *({}, {"num_key_value_heads": 1, "head_dim": 20}, {"attention_bias": True, "mlp_bias": True}),
        *({"is_causal": False}, {"hidden_act": "gelu", "rms_norm_eps": 1e-2}, rope(DEFAULT)),
        rope({"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}),
        {**rope({"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}), "max_position_embeddings": 32},
        rope({**YARN, "factor": 4.0}),
        rope({**YARN, "factor": 4.0, "beta_fast": 4.0, "beta_slow": 2.0, "truncate": False}),
        rope({**YARN, "factor": 4.0, "mscale": 1.5, "mscale_all_dim": 0.7}),
        rope(
            {
                **{"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0},
                **{"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
            }
        ),
    ],
    "mistral": [{}, {"sliding_window": None}, {"sliding_window": 1}, {"head_dim": 16}, BOTH_WAYS],
    "ministral3": [{}, {"sliding_window": 8}, {"is_causal": False, "hidden_act": "gelu"}, BOTH_WAYS],
    "qwen2": [{}, SLIDING, {"is_causal": False}, {**SLIDING, **BOTH_WAYS}],
    "qwen3": [{}, {"head_dim": 20, "attention_bias": True}, {"num_key_value_heads": 4}, {**SLIDING, **BOTH_WAYS}],
    "qwen3_moe": [
        *({}, {"norm_topk_prob": True, "num_experts_per_tok": 8}, {"mlp_only_layers": [1], "hidden_act": "gelu"}),
        *({"decoder_sparse_step": 2}, {"use_sliding_window": True, "sliding_window": 4}, {"num_experts": 0}),
        *({"moe_intermediate_size": 36}, {"use_sliding_window": True, **BOTH_WAYS}),
    ],
    "openai_privacy_filter": [
        *({}, {"num_experts_per_tok": 1, "swiglu_alpha": 1.0, "swiglu_limit": 0.5}, {"attention_bias": False}),
        rope(DEFAULT),
    ],
    "gemma": [{}, {"num_key_value_heads": 1}],
    "gemma2": [{}, {"attn_logit_softcapping": None}, {"hidden_activation": "silu"}, BOTH_WAYS],
    "gemma3_text": [{}, {"use_bidirectional_attention": True}, BOTH_WAYS],
    "embedding_gemma2_text": [{}, {"hidden_activation": "silu", "embedding_dim": 56, "attention_bias": True}],
    "phi3": [{}, {**rope(DEFAULT), "sliding_window": 8}, {"partial_rotary_factor": 0.5, **rope(LONG)}, BOTH_WAYS],
    "granite": [{}, {"attention_bias": True, "mlp_bias": True}],
    "smollm3": [{}, {"use_sliding_window": True, "sliding_window": 8}, {"use_sliding_window": True, **BOTH_WAYS}],
    "olmo3": [{}, BOTH_WAYS],
    "olmo2": [{}, {"num_key_value_heads": 1, "attention_bias": True}],
    "stablelm": [{}, {"use_parallel_residual": True, "use_qkv_bias": True}],
    "gpt2": [{}, {"activation_function": "gelu", "scale_attn_weights": False}, {"is_causal": False}],
    "gpt_bigcode": [{}, {"multi_query": False}],
    "gpt_neo": [{}, {"window_size": 1}],
    "gptj": [{}, {"rotary_dim": 12}],
    "gpt_neox": [{}, {"use_parallel_residual": False, "attention_bias": False}],
    "bloom": [{}, {"n_head": 6}],
    "starcoder2": [{}, {"sliding_window": 8, "use_bias": False}, BOTH_WAYS],
    "cohere": [{}, {"attention_bias": True}],
    "cohere2": [{}, BOTH_WAYS],
    "lfm2": [
        *(
            {},
            {"conv_L_cache": 4, "block_auto_adjust_ff_dim": False},
            {"layer_types": ["full_attention"] * 2 + ["conv"]},
        ),
        {"layer_types": ["conv", "conv", "full_attention"], "block_ffn_dim_multiplier": 1.5},
    ],
    "modernbert-decoder": [
        *({}, {"norm_bias": False}, {"attention_bias": True, "mlp_bias": True}),
        {"sliding_window": 3, "local_attention": 20},
    ],
}
"""Of each family, whose first ones are its own defaults."""

NO_CLASS = {  # of ours, that transformers does not have
    *((family, "SequenceClassification") for family in ("granite", "cohere", "cohere2", "lfm2")),
    *((family, "TokenClassification") for family in ("granite", "cohere", "cohere2", "lfm2", "gemma3_text")),
    *((family, "TokenClassification") for family in ("olmo2", "olmo3", "opt")),
    ("lfm2", "MaskedLM"),
}


def families_with(head: str) -> list[str]:
    """The families that have this head."""
    known = (family for family in FAMILIES if head in families.FAMILIES[family].heads)
    return [family for family in known if (family, head) not in NO_CLASS]
