"""The names that clients give to kinds of text, and the names that models give to their prompts."""

from bei.checkpoint.texts import Prompts
from bei.errors import Invalid, short

_QUERY = ("query", "search_query", "retrieval.query", "Retrieval-query", "s2p_query")
_DOCUMENT = ("document", "passage", "search_document", "retrieval.passage", "Retrieval-document", "corpus")
_KINDS = (
    _QUERY,
    _DOCUMENT,
    ("text-matching", "STS", "s2s_query"),
    ("classification", "Classification"),
    ("clustering", "separation", "Clustering"),
    *((f"{code}.query", f"{code}_query") for code in ("nl2code", "code2code", "code2nl", "code2completion", "qa")),
    *((f"{code}.passage", f"{code}_document") for code in ("nl2code", "code2code", "code2nl", "code2completion", "qa")),
)


def of_kind(prompts: Prompts, field: str, kind: str) -> str | None:
    """The name of the model's prompt for a kind of text. `field` is Cohere's, NVIDIA's and Voyage's `input_type`, or
    Jina's `task`. None for a model without prompts, and for a query or document where the model has a prompt for the
    other one only. Raises Invalid, also for a kind whose adapter is not served."""
    names = next((names for names in _KINDS if kind in names), None)
    if prompts.adapter is not None and prompts.adapter not in (kind, *(names or ())):
        raise Invalid(
            f"`{field}` {short(kind)} has an adapter of its own, and this server's is {short(prompts.adapter)} "
            "(BEI_TASK_ADAPTER); send what that one is for, or leave the field out",
            param=field,
        )
    texts = prompts.texts
    found = next((name for name in (kind, *(names or ())) if name in texts), None)
    if found is not None or names in (_QUERY, _DOCUMENT) or (names and not any(texts.values())):
        return found
    known = sorted(texts) or sorted(names[0] for names in _KINDS)
    raise Invalid(f"`{field}` {short(kind)} has no prompt; there are {', '.join(known)}", param=field)
