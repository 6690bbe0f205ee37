"""Tiny random models in their real on-disk format, one builder per family."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "under",
    "big",
    "small",
    "red",
    "blue",
    "mat",
    "tree",
    "and",
    "then",
    "it",
    "was",
    "very",
    "old",
]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PIECES = [*LETTERS, *".,:!?'", *("##" + c for c in LETTERS)]
VOCAB = [*SPECIALS, *WORDS, *PIECES]

_SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
_DISTIL_SIZES = {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 96}
_T5_SIZES = {"d_model": 48, "num_layers": 3, "num_heads": 4, "d_kv": 12, "d_ff": 96}
_CONFIGS = {
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
    "xlm-roberta": transformers.XLMRobertaConfig,
    "camembert": transformers.CamembertConfig,
    "xlm-roberta-xl": transformers.XLMRobertaXLConfig,
    "jina_embeddings_v3": transformers.JinaEmbeddingsV3Config,
    "electra": transformers.ElectraConfig,
    "ernie": transformers.ErnieConfig,
    "albert": transformers.AlbertConfig,
    "roformer": transformers.RoFormerConfig,
    "big_bird": transformers.BigBirdConfig,
    "esm": transformers.EsmConfig,
    "distilbert": transformers.DistilBertConfig,
    "mobilebert": transformers.MobileBertConfig,
    "mpnet": transformers.MPNetConfig,
    "xlnet": transformers.XLNetConfig,
    "deberta": transformers.DebertaConfig,
    "deberta-v2": transformers.DebertaV2Config,
    "t5": transformers.T5Config,
    "mt5": transformers.MT5Config,
    "umt5": transformers.UMT5Config,
    "modernbert": transformers.ModernBertConfig,
    "nomic_bert": transformers.NomicBertConfig,
    "gte": transformers.GteConfig,
    "eurobert": transformers.EuroBertConfig,
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "ministral3": transformers.Ministral3Config,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "qwen3_moe": transformers.Qwen3MoeConfig,
    "openai_privacy_filter": transformers.OpenAIPrivacyFilterConfig,
    "gemma": transformers.GemmaConfig,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
    "embedding_gemma2_text": transformers.EmbeddingGemma2TextConfig,
    "phi3": transformers.Phi3Config,
    "granite": transformers.GraniteConfig,
    "smollm3": transformers.SmolLM3Config,
    "olmo2": transformers.Olmo2Config,
    "olmo3": transformers.Olmo3Config,
    "stablelm": transformers.StableLmConfig,
    "gpt2": transformers.GPT2Config,
    "gpt_bigcode": transformers.GPTBigCodeConfig,
    "gpt_neo": transformers.GPTNeoConfig,
    "gptj": transformers.GPTJConfig,
    "gpt_neox": transformers.GPTNeoXConfig,
    "bloom": transformers.BloomConfig,
    "opt": transformers.OPTConfig,
    "starcoder2": transformers.Starcoder2Config,
    "cohere": transformers.CohereConfig,
    "cohere2": transformers.Cohere2Config,
    "lfm2": transformers.Lfm2Config,
    "modernbert-decoder": transformers.ModernBertDecoderConfig,
}
FAMILIES = tuple(_CONFIGS)
CAUSAL = (
    *("llama", "mistral", "ministral3", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi3"),
    *("granite", "smollm3", "olmo2", "olmo3", "stablelm", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "gpt_neox"),
    *("bloom", "opt", "starcoder2", "cohere", "cohere2", "lfm2", "modernbert-decoder"),
)
ALL_KEYS = ("gpt2", "gpt_bigcode", "gpt_neo", "gptj", "gpt_neox", "bloom", "opt", "modernbert-decoder")
"""Causal families whose heads do not share keys."""

T5 = ("t5", "mt5", "umt5")
ENCODERS = tuple(family for family in FAMILIES if family not in CAUSAL)
DISENTANGLED = ("deberta", "deberta-v2")
MIXTURES = ("qwen3_moe", "openai_privacy_filter")
ALL_EXPERTS = {family: {"num_experts_per_tok": 8} for family in MIXTURES}
"""Options of a mixture all of whose experts are chosen: where two are nearly alike, rounding chooses the other one."""
ALIKE = (
    *("smollm3", "olmo3", "gpt_bigcode", "gpt_neo", "gptj", "opt", "starcoder2", "cohere", "cohere2"),
    "modernbert-decoder",
)
"""Families whose specs have no word that others lack: slow tests pass them by (tests/engines/test_alike.py)."""
_LATE_POSITIONS = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet")
"""Their positions begin after the padding's."""
_GPT2_SIZES = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_inner": 96, "n_positions": 64}
_SIZES_OF = {
    "distilbert": _DISTIL_SIZES,
    "xlnet": {"d_model": 48, "n_layer": 3, "n_head": 4, "d_inner": 96},
    "gpt2": _GPT2_SIZES,
    "gpt_bigcode": _GPT2_SIZES,
    "gptj": {**_GPT2_SIZES, "rotary_dim": 8},
    "gpt_neo": {
        **{"hidden_size": 48, "num_layers": 3, "num_heads": 4, "intermediate_size": 96, "window_size": 8},
        "attention_types": [[["global", "local", "global"], 1]],
    },
    "bloom": {"hidden_size": 48, "n_layer": 3, "n_head": 4, "seq_length": 64},
    "opt": {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 96},
}
_OWN_FIELDS = {
    "embedding_gemma2_text": {
        **{"head_dim": 12, "global_head_dim": 20, "num_global_key_value_heads": 1, "num_key_value_heads": 2},
        **{"sliding_window": 8, "sliding_window_pattern": 2, "hidden_size_per_layer_input": 20, "embedding_dim": 48},
    },
    "phi3": {
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            **{"rope_type": "longrope", "rope_theta": 100.0},
            **{"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0]},
        },
    },
    "granite": {
        **{"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4},
        "logits_scaling": 2.0,
    },
    "smollm3": {"no_rope_layer_interval": 2},
    "olmo3": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "stablelm": {"partial_rotary_factor": 0.5},
    "gpt_neox": {"rotary_pct": 0.5},
    "cohere2": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 32},
    "modernbert-decoder": {"local_attention": 16, "norm_bias": True, "classifier_bias": True},
    "ernie": {"use_task_id": True},
    "roformer": {"embedding_size": 32},
    "big_bird": {"sep_token_id": 3},
    "esm": {"position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 50, "rope_theta": 500.0},
    "albert": {"embedding_size": 32, "num_hidden_groups": 2},
    "electra": {"embedding_size": 32},
    "mobilebert": {
        **{"embedding_size": 20, "intra_bottleneck_size": 24, "num_feedforward_networks": 3},
        "initializer_range": 0.1,  # nothing norms the states
    },
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "modernbert": {"local_attention": 8, "norm_bias": True, "classifier_bias": True},
    "mistral": {"sliding_window": 8},
    "ministral3": {
        "head_dim": 16,
        "rope_parameters": {
            **{"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16},
            **{"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.4},
        },
    },
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "openai_privacy_filter": {
        **{"head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 7},
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    },
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 8, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 20},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 20, "sliding_window_pattern": 2},
}


def random_model(family: str, seed: int = 0, head: str = "", **options) -> transformers.PreTrainedModel:
    """A model of `family` with weights wide enough to reveal a wrong layer, and positions for 64 tokens. `head` is the
    part of transformers' class name: ForSequenceClassification, ForTokenClassification, ForMaskedLM."""
    if family in T5:
        return _random_t5(family, seed, head, **options)
    sizes = _SIZES_OF.get(family, _SIZES)
    offset = 2 if family in _LATE_POSITIONS else 0
    torch.manual_seed(seed)
    fields = {"vocab_size": len(VOCAB), "max_position_embeddings": 64 + offset, "initializer_range": 0.2}
    fields |= _OWN_FIELDS.get(family, {})
    if family in ("gpt2", "gpt_bigcode", "gptj", "bloom", "xlnet"):
        del fields["max_position_embeddings"]
    if family in (*CAUSAL, "eurobert", "openai_privacy_filter") and family not in ALL_KEYS:
        fields["num_key_value_heads"] = 2
    if family not in _LATE_POSITIONS:
        fields |= {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    config = _CONFIGS[family](**{**fields, **sizes, **options})
    return _uneven(getattr(transformers, f"AutoModel{head}").from_config(config, attn_implementation="eager"))


def _random_t5(family: str, seed: int, head: str, **options) -> transformers.PreTrainedModel:
    """transformers' AutoModel of T5 has its decoder, too."""
    torch.manual_seed(seed)
    fields = {"vocab_size": len(VOCAB), "n_positions": 64, "pad_token_id": 0, "eos_token_id": 3, **_T5_SIZES}
    config = _CONFIGS[family](**{**fields, **options})
    name = f"{type(config).__name__.removesuffix('Config')}{head or 'EncoderModel'}"
    return _uneven(getattr(transformers, name)._from_config(config, attn_implementation="eager"))


def _uneven(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    model = model.eval()
    for parameter in model.parameters():  # transformers starts biases at 0 and norms at 1, which would hide errors
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def word_pieces() -> Tokenizer:
    """BERT's tokenizer over VOCAB."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCAB)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


MEAN = {"pooling_mode": "mean"}


def save(folder: Path, model: transformers.PreTrainedModel, *, pooling: dict | None = MEAN) -> Path:
    """Saves weights, config and tokenizer; unless `pooling` is None also modules.json and 1_Pooling/config.json."""
    model.save_pretrained(folder)
    word_pieces().save(str(folder / "tokenizer.json"))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    names = ["input_ids", "attention_mask"]
    if model.config.model_type in ("bert", "electra"):
        names.append("token_type_ids")
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": names, **special}
    write_json(folder / "tokenizer_config.json", tokenizer)
    if pooling is not None:
        write_modules(folder, {"Transformer": "", "Pooling": "1_Pooling"})
        write_json(folder / "1_Pooling" / "config.json", pooling)
    return folder


def write_modules(folder: Path, modules: dict[str, str]) -> None:
    """modules.json from type → path."""
    rows = [
        {"idx": i, "name": str(i), "type": f"sentence_transformers.models.{kind}", "path": path}
        for i, (kind, path) in enumerate(modules.items())
    ]
    write_json(folder / "modules.json", rows)


def change_module(folder: Path, index: int, **fields: str) -> None:
    """Other values in a row of modules.json."""
    rows = json.loads((folder / "modules.json").read_text())
    rows[index] |= fields
    write_json(folder / "modules.json", rows)


def write_json(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))
