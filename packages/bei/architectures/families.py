"""The family of each `model_type`, one line each. A new architecture is one file in this folder and its line here."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from bei.architectures.config import Config
from bei.architectures.family import Family
from bei.errors import SetupError, short

_PLACES = {
    "bert": "bei.architectures.bert:BERT",
    "roberta": "bei.architectures.bert:ROBERTA",
    "xlm-roberta": "bei.architectures.bert:ROBERTA",
    "camembert": "bei.architectures.bert:ROBERTA",
    "xlm-roberta-xl": "bei.architectures.bert:XLM_ROBERTA_XL",
    "xlm-roberta-flash": "bei.architectures.flash_xlm_roberta:FLASH",
    "jina_embeddings_v3": "bei.architectures.flash_xlm_roberta:JINA_V3",
    "electra": "bei.architectures.bert:ELECTRA",
    "ernie": "bei.architectures.bert:ERNIE",
    "albert": "bei.architectures.albert:ALBERT",
    "roformer": "bei.architectures.roformer:ROFORMER",
    "big_bird": "bei.architectures.big_bird:BIG_BIRD",
    "esm": "bei.architectures.esm:ESM",
    "neobert": "bei.architectures.neobert:NEOBERT",
    "distilbert": "bei.architectures.distilbert:DISTILBERT",
    "mobilebert": "bei.architectures.mobilebert:MOBILEBERT",
    "mpnet": "bei.architectures.mpnet:MPNET",
    "deberta": "bei.architectures.deberta:DEBERTA_V1",
    "deberta-v2": "bei.architectures.deberta:DEBERTA",
    "xlnet": "bei.architectures.xlnet:XLNET",
    "jina_bert": "bei.architectures.jina_bert:JINA_BERT",
    "nomic_bert": "bei.architectures.nomic_bert:NOMIC_BERT",
    "new": "bei.architectures.gte:GTE",
    "gte": "bei.architectures.gte:GTE",
    "bart": "bei.architectures.bart:BART",
    "t5": "bei.architectures.t5:T5",
    "mt5": "bei.architectures.t5:MT5",
    "umt5": "bei.architectures.t5:UMT5",
    "modernbert": "bei.architectures.modernbert:MODERNBERT",
    "eurobert": "bei.architectures.eurobert:EUROBERT",
    "llama": "bei.architectures.llama:LLAMA",
    "llama_bidirec": "bei.architectures.llama:LLAMA_BIDIRECTIONAL",
    "mistral": "bei.architectures.llama:MISTRAL",
    "ministral3": "bei.architectures.llama:MINISTRAL3",
    "ministral3_bidirec": "bei.architectures.llama:MINISTRAL3_BIDIRECTIONAL",
    "qwen2": "bei.architectures.qwen:QWEN2",
    "qwen3": "bei.architectures.qwen:QWEN3",
    "qwen3_moe": "bei.architectures.qwen:QWEN3_MOE",
    "bidirectional_pplx_qwen3": "bei.architectures.qwen:PPLX_QWEN3",
    "openai_privacy_filter": "bei.architectures.privacy_filter:PRIVACY_FILTER",
    "gemma": "bei.architectures.gemma:GEMMA",
    "gemma2": "bei.architectures.gemma:GEMMA2",
    "gemma3_text": "bei.architectures.gemma:GEMMA3",
    "t5gemma": "bei.architectures.gemma:T5GEMMA",
    "embedding_gemma2": "bei.architectures.embedding_gemma2:EMBEDDING_GEMMA2",
    "embedding_gemma2_text": "bei.architectures.embedding_gemma2:EMBEDDING_GEMMA2",
    "phi3": "bei.architectures.phi:PHI3",
    "granite": "bei.architectures.granite:GRANITE",
    "smollm3": "bei.architectures.smollm3:SMOLLM3",
    "olmo2": "bei.architectures.olmo:OLMO2",
    "olmo3": "bei.architectures.olmo:OLMO3",
    "stablelm": "bei.architectures.stablelm:STABLELM",
    "gpt2": "bei.architectures.gpt2:GPT2",
    "gpt_bigcode": "bei.architectures.gpt2:GPT_BIGCODE",
    "gpt_neo": "bei.architectures.gpt_neo:GPT_NEO",
    "gptj": "bei.architectures.gptj:GPTJ",
    "gpt_neox": "bei.architectures.gpt_neox:GPT_NEOX",
    "bloom": "bei.architectures.bloom:BLOOM",
    "opt": "bei.architectures.opt:OPT",
    "starcoder2": "bei.architectures.starcoder2:STARCODER2",
    "cohere": "bei.architectures.cohere:COHERE",
    "cohere2": "bei.architectures.cohere:COHERE2",
    "lfm2": "bei.architectures.lfm2:LFM2",
    "modernbert-decoder": "bei.architectures.modernbert:MODERNBERT_DECODER",
}


class _Families(Mapping[str, Family]):
    """Families by `model_type`. The file of a family is imported when the family is read, for a server needs one."""

    def __getitem__(self, model_type: str) -> Family:
        module, _, name = _PLACES[model_type].partition(":")
        found: Family = getattr(importlib.import_module(module), name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


FAMILIES: Mapping[str, Family] = _Families()


def family(config: Mapping[str, Any]) -> Family:
    """The family of a config.json. Raises SetupError for a `model_type` that has none."""
    model_type = config.get("model_type")
    if model_type == "bert" and config.get("position_embedding_type") == "alibi":
        return FAMILIES["jina_bert"]
    if _is_flash(config):
        return FAMILIES["xlm-roberta-flash"]
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise SetupError(
            f"config.json: model_type {short(model_type)} is not supported; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def _is_flash(config: Config) -> bool:
    """Whether config.json is of Jina AI's XLMRobertaFlashConfig, whose model_type is that of XLM-RoBERTa, or none."""
    stated = (config.get("auto_map") or {}).get("AutoConfig")
    own = "use_flash_attn" in config or str(stated).endswith(".XLMRobertaFlashConfig")
    return own and config.get("model_type") in (None, "", "xlm-roberta")
