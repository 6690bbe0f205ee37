"""Kinds of models that are not served, each refused by its own line."""

from collections.abc import Mapping
from typing import Any

from bei.errors import SetupError

_IMAGES = "reads images, which are not served"
_DECODER = (
    "has a decoder that attends to its encoder, and no engine here computes that; for zero-shot labels serve an NLI "
    "model of DeBERTa or ModernBERT"
)
_SPARSE = "attends to a part of the tokens by a pattern of its own, which no engine here computes"
_APPROXIMATE = "approximates attention, which no engine here computes"
TYPES: dict[str, str] = {
    **dict.fromkeys(("mbart", "pegasus", "marian", "m2m_100", "plbart", "blenderbot"), _DECODER),
    **dict.fromkeys(("longformer", "led", "longt5", "bigbird_pegasus"), _SPARSE),
    **dict.fromkeys(("nystromformer", "reformer", "yoso", "mra"), _APPROXIMATE),
    "fnet": "mixes tokens by Fourier transforms, which no engine here computes",
    "transfo-xl": "has a vocabulary in parts of several widths, which no engine here computes",
    "funnel": "pools tokens between its layers, which no engine here computes",
    "convbert": "convolves tokens within attention, which no engine here computes",
    "squeezebert": "has grouped products in place of linear layers, which no engine here computes",
    **dict.fromkeys(
        ("layoutlm", "layoutlmv2", "layoutlmv3", "lilt", "markuplm"), "reads the layout of a page, which is not served"
    ),
    "jina_embeddings_v5": (
        "has adapters of several tasks that its own code chooses, which is not run; serve a checkpoint of one task"
    ),
    "nvembed": "pools by a latent attention of its own code, which is not run",
    **dict.fromkeys(
        (
            *("clip", "siglip", "siglip2", "jina_clip", "jina_embeddings_v4", "colpali", "colqwen2", "qwen2_vl"),
            *("qwen2_5_vl", "qwen3_vl", "paligemma", "llama_nemotron_vl"),
        ),
        _IMAGES,
    ),
}


def check(config: Mapping[str, Any]) -> None:
    """Raises SetupError for a model of such a kind."""
    name = config.get("model_type")
    if isinstance(name, str) and name in TYPES:
        raise SetupError(f"config.json: model_type {name}: the model {TYPES[name]}")
