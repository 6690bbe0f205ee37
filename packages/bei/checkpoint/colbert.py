"""How a ColBERT model (arXiv:2004.12832) reads queries and documents, from any of its three layouts:
sentence-transformers' MultiVectorEncoder, PyLate up to version 3, and Stanford's own."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bei.checkpoint.modules import Modules, read_json, special_token
from bei.errors import SetupError, short

_PUNCTUATION = tuple(string.punctuation)
_QUERY_TOKENS = 32  # the paper's, and every layout's default


@dataclass(frozen=True)
class LateInteraction:
    """`query_tokens` and `document_tokens` are the limits of each, including specials; None is the model's own limit.

    A query shorter than `expansion` is padded to it with `mask`; other tokens attend to the padding only with `attend`.
    Tokens of `skiplist` are left out of documents, and with `skip_queries` of queries. `markers` are prompts of one
    token each. `mean`: the score is the mean over the query's tokens, not the sum.
    """

    query_tokens: int | None
    document_tokens: int | None
    expansion: int
    attend: bool
    mask: str | None
    skiplist: tuple[str, ...]
    skip_queries: bool
    markers: Mapping[str, str]
    mean: bool


def is_pylate(folder: Path) -> bool:
    return bool(read_json(folder / "config_sentence_transformers.json").get("model_type") == "ColBERT")


def read_late_interaction(folder: Path, modules: Modules, limits: Mapping[str, Any], stanford: bool) -> LateInteraction:
    """`limits` is sentence_bert_config.json. Raises SetupError for a feature that is not supported."""
    saved = read_json(folder / "config_sentence_transformers.json")
    metadata = read_json(folder / "artifact.metadata") if stanford else {}
    mask = read_json(modules.mask / "config.json") if modules.mask else {}
    if mask.get("keep_only_token_ids"):
        raise SetupError(f"{modules.mask}/config.json: keep_only_token_ids is for images, and is not supported")
    markers = _markers(saved, metadata, stanford)
    expansion = limits.get("query_expansion") or _expansion(saved, metadata, bool(markers))
    length = expansion.get("length", 0)
    fixed = expansion.get("strategy") == "fixed"
    query = length if fixed else limits.get("query_length") or saved.get("query_length")
    return LateInteraction(
        query_tokens=max(query, length) if query else None,
        document_tokens=limits.get("document_length") or saved.get("document_length") or metadata.get("doc_maxlen"),
        expansion=length,
        attend=bool(expansion.get("attend")),
        mask=expansion.get("token") or special_token(modules.encoder, "mask_token"),
        skiplist=_skiplist(saved, mask, metadata, legacy=stanford or is_pylate(folder)),
        skip_queries="query" in mask.get("skiplist_tasks", ()),
        markers=markers,
        mean=_is_mean(saved.get("similarity_fn_name")),
    )


def _is_mean(similarity: object) -> bool:
    """Of the older layouts the word may be that of an embedder. Raises SetupError for an unknown one."""
    word = str(similarity or "maxsim").lower().replace("_", "")
    if word not in ("maxsim", "meanmaxsim", "maxsimmean", "cosine", "dot"):
        raise SetupError(
            f"config_sentence_transformers.json: similarity_fn_name {short(similarity)} is not supported; supported: "
            "maxsim, meanmaxsim"
        )
    return "mean" in word


def _markers(saved: Mapping[str, Any], metadata: Mapping[str, Any], stanford: bool) -> dict[str, str]:
    """[Q] and [D]: prompts by role."""
    if stanford:
        query, document = metadata.get("query_token_id"), metadata.get("doc_token_id")
        return {"query": (query or "[unused0]") + " ", "document": (document or "[unused1]") + " "}
    keys = {"query": "query_prefix", "document": "document_prefix"}
    return {role: saved[key] for role, key in keys.items() if saved.get(key)}


def _expansion(saved: Mapping[str, Any], metadata: Mapping[str, Any], marked: bool) -> Mapping[str, Any]:
    """Of the older layouts: {} for none; else strategy, attend, length, token, as sentence-transformers 6 has them."""
    if "query_expansion" in saved:
        return saved["query_expansion"] or {}
    flags = ("do_query_expansion", "attend_to_expansion_tokens", "query_length", "document_length", "skiplist_words")
    if saved.get("do_query_expansion") is False or not (metadata or marked or any(flag in saved for flag in flags)):
        return {}
    attend = saved.get("attend_to_expansion_tokens", metadata.get("attend_to_mask_tokens"))
    length = saved.get("query_length") or metadata.get("query_maxlen") or _QUERY_TOKENS
    return {"strategy": "fixed", "attend": bool(attend), "length": length}


def _skiplist(
    saved: Mapping[str, Any], mask: Mapping[str, Any], metadata: Mapping[str, Any], *, legacy: bool
) -> tuple[str, ...]:
    """Older layouts leave punctuation out unless they say otherwise."""
    if "skiplist_words" in mask:
        return tuple(mask["skiplist_words"] or ())
    if saved.get("skiplist_words") is not None:
        return tuple(saved["skiplist_words"])
    return _PUNCTUATION if legacy and metadata.get("mask_punctuation", True) else ()
