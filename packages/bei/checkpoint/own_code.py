"""Code that a checkpoint brings (config.json's `auto_map`) is never run. If it may compute something other than
our architecture of that name, a warning is logged. A decoder of whose attention nothing is stated is refused."""

import logging
from collections.abc import Mapping
from typing import Any

from bei.architectures.spec import EncoderSpec
from bei.errors import SetupError
from bei.settings import AttentionSetting

log = logging.getLogger("bei")

_OURS: dict[str, tuple[str, ...]] = {
    "bert": ("JinaBert",),
    "xlm-roberta": ("XLMRoberta",),
    "nomic_bert": ("NomicBert",),
    "new": ("New",),
    "gte": ("New", "Gte"),
    "eurobert": ("EuroBert",),
    "neobert": ("NeoBERT",),
    "llama_bidirec": ("LlamaBidirec",),
    "lfm2": ("Lfm2Bidirectional",),
    "ministral3_bidirec": ("Ministral3Bidirec",),
    "bidirectional_pplx_qwen3": ("PPLXQwen3",),
    "qwen2": ("Qwen2ForRewardModel",),
    "qwen3": ("Qwen3Bidirectional", "VoyageQwen3Bidirectional", "JinaForRanking"),
}
"""Prefixes of the classes whose published code our architectures implement, by `model_type`."""

_STATED = ("is_causal", "use_bidirectional_attention")


def with_attention(config: Mapping[str, Any], setting: AttentionSetting | None) -> Mapping[str, Any]:
    """config.json, with the setting for attention if it states none itself."""
    return config if setting is None else {"is_causal": setting == "causal", **config}


def check(config: Mapping[str, Any], spec: EncoderSpec, setting: AttentionSetting | None) -> None:
    """Check that our architecture computes the model. Raises SetupError for a decoder whose own code decides the
    direction of attention, and for a `setting` that config.json or the architecture contradicts."""
    if setting is not None and spec.causal != (setting == "causal"):
        raise SetupError(f"BEI_ATTENTION is {setting}, but config.json and its architecture say otherwise; remove it")
    own = [name for name in _own_classes(config) if not _is_ours(name, config.get("model_type", ""))]
    if not own:
        return
    if spec.causal and not any(config.get(key) is not None for key in _STATED):
        raise SetupError(
            f"config.json: the model is {own[0]}, code of its own that is not run and may let tokens see both ways; "
            "set BEI_ATTENTION to causal or bidirectional, as its model card says"
        )
    log.warning(
        "config.json: the model is %s, code of its own that is not run; it is served as the architecture %r. Compare a "
        "vector with its model card's",
        *(own[0], config.get("model_type")),
    )


def _own_classes(config: Mapping[str, Any]) -> list[str]:
    named = config.get("auto_map") or {}
    return [str(of) for key, of in named.items() if key.startswith("AutoModel") and of]


def _is_ours(path: str, model_type: str) -> bool:
    return path.rsplit(".", 1)[-1].startswith(_OURS.get(model_type, ()))
