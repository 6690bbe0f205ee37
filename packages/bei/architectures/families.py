"""The family of each `model_type`, one line each. A new architecture is one file in this folder and its line here."""

from collections.abc import Mapping
from typing import Any

from bei.architectures import (
    albert,
    bart,
    bert,
    big_bird,
    bloom,
    cohere,
    deberta,
    distilbert,
    embedding_gemma2,
    esm,
    eurobert,
    flash_xlm_roberta,
    gemma,
    gpt2,
    gpt_neo,
    gpt_neox,
    gptj,
    granite,
    gte,
    jina_bert,
    lfm2,
    llama,
    modernbert,
    mpnet,
    neobert,
    nomic_bert,
    olmo,
    opt,
    phi,
    privacy_filter,
    qwen,
    roformer,
    smollm3,
    stablelm,
    starcoder2,
    t5,
)
from bei.architectures.family import Family
from bei.errors import SetupError, short

FAMILIES: dict[str, Family] = {
    "bert": bert.BERT,
    "roberta": bert.ROBERTA,
    "xlm-roberta": bert.ROBERTA,
    "camembert": bert.ROBERTA,
    "xlm-roberta-xl": bert.XLM_ROBERTA_XL,
    "xlm-roberta-flash": flash_xlm_roberta.FLASH,
    "jina_embeddings_v3": flash_xlm_roberta.JINA_V3,
    "electra": bert.ELECTRA,
    "ernie": bert.ERNIE,
    "albert": albert.ALBERT,
    "roformer": roformer.ROFORMER,
    "big_bird": big_bird.BIG_BIRD,
    "esm": esm.ESM,
    "neobert": neobert.NEOBERT,
    "distilbert": distilbert.DISTILBERT,
    "mpnet": mpnet.MPNET,
    "deberta": deberta.DEBERTA_V1,
    "deberta-v2": deberta.DEBERTA,
    "jina_bert": jina_bert.JINA_BERT,
    "nomic_bert": nomic_bert.NOMIC_BERT,
    "new": gte.GTE,
    "gte": gte.GTE,
    "bart": bart.BART,
    "t5": t5.T5,
    "mt5": t5.MT5,
    "umt5": t5.UMT5,
    "modernbert": modernbert.MODERNBERT,
    "eurobert": eurobert.EUROBERT,
    "llama": llama.LLAMA,
    "llama_bidirec": llama.LLAMA_BIDIRECTIONAL,
    "mistral": llama.MISTRAL,
    "ministral3": llama.MINISTRAL3,
    "ministral3_bidirec": llama.MINISTRAL3_BIDIRECTIONAL,
    "qwen2": qwen.QWEN2,
    "qwen3": qwen.QWEN3,
    "qwen3_moe": qwen.QWEN3_MOE,
    "bidirectional_pplx_qwen3": qwen.PPLX_QWEN3,
    "openai_privacy_filter": privacy_filter.PRIVACY_FILTER,
    "gemma": gemma.GEMMA,
    "gemma2": gemma.GEMMA2,
    "gemma3_text": gemma.GEMMA3,
    "t5gemma": gemma.T5GEMMA,
    "embedding_gemma2": embedding_gemma2.EMBEDDING_GEMMA2,
    "embedding_gemma2_text": embedding_gemma2.EMBEDDING_GEMMA2,
    "phi3": phi.PHI3,
    "granite": granite.GRANITE,
    "smollm3": smollm3.SMOLLM3,
    "olmo2": olmo.OLMO2,
    "olmo3": olmo.OLMO3,
    "stablelm": stablelm.STABLELM,
    "gpt2": gpt2.GPT2,
    "gpt_bigcode": gpt2.GPT_BIGCODE,
    "gpt_neo": gpt_neo.GPT_NEO,
    "gptj": gptj.GPTJ,
    "gpt_neox": gpt_neox.GPT_NEOX,
    "bloom": bloom.BLOOM,
    "opt": opt.OPT,
    "starcoder2": starcoder2.STARCODER2,
    "cohere": cohere.COHERE,
    "cohere2": cohere.COHERE2,
    "lfm2": lfm2.LFM2,
    "modernbert-decoder": modernbert.MODERNBERT_DECODER,
}


def family(config: Mapping[str, Any]) -> Family:
    """The family of a config.json. Raises SetupError for a `model_type` that has none."""
    model_type = config.get("model_type")
    if model_type == "bert" and config.get("position_embedding_type") == "alibi":
        return jina_bert.JINA_BERT
    if flash_xlm_roberta.is_flash(config):
        return flash_xlm_roberta.FLASH
    if model_type not in FAMILIES:
        raise SetupError(
            f"config.json: model_type {short(model_type)} is not supported; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]
