"""Models that rank a list: one prompt has the query and its documents, and each ends with a token whose state is
compared.

Source: `rerank` and `format_docs_prompts_func` of jina-reranker-v3's modeling.py (arXiv:2509.25085).
"""

from dataclasses import dataclass, replace

from bei.architectures.spec import EncoderSpec


@dataclass(frozen=True)
class ListTemplate:
    """The texts of a prompt, in their order, with the places {count} of documents, {query}, {instruction}, {index} and
    {document}. A document ends with `document_mark`, and the query with `query_mark`, which are special tokens.

    A query and a document are cut at `query_tokens` and `document_tokens`. A prompt has at most `documents`, and takes
    no more once it may lack the room for one of `document_tokens`.
    """

    before: str
    instruction: str
    document: str
    document_mark: str
    after_document: str
    query: str
    query_mark: str
    after: str
    query_tokens: int
    document_tokens: int
    documents: int


_JINA = ListTemplate(
    before="<|im_start|>system\n"
    "You are a search relevance expert who can determine a ranking of the passages based on how relevant they are to "
    "the query. If the query is a question, how relevant a passage is depends on how well it answers the question. If "
    "not, try to analyze the intent of the query and assess how well each passage satisfies the intent. If an "
    "instruction is provided, you should follow the instruction when determining the ranking.<|im_end|>\n"
    "<|im_start|>user\n"
    "I will provide you with {count} passages, each indicated by a numerical identifier. Rank the passages based on "
    "their relevance to query: {query}\n",
    instruction="<instruct>\n{instruction}\n</instruct>\n",
    document='<passage id="{index}">\n{document}',
    document_mark="<|embed_token|>",
    after_document="\n</passage>\n",
    query="<query>\n{query}",
    query_mark="<|rerank_token|>",
    after="\n</query><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    query_tokens=512,
    document_tokens=2048,
    documents=125,
)


def list_template(spec: EncoderSpec) -> ListTemplate:
    """The template of a JinaForRanking. jina-reranker-v3.5, some of whose layers have windows, reads longer texts."""
    if any(layer.window is not None for layer in spec.layers):
        return replace(_JINA, query_tokens=1024, document_tokens=8192)
    return _JINA
