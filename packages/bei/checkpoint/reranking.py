"""Language models that judge a document by the words that follow it: how each is asked, and where its answer is.

Sources: the model card of Qwen3-Reranker; mxbai_rerank/mxbai_rerank_v2.py of mixedbread's mxbai-rerank;
FlagLLMReranker of FlagEmbedding, for bge-reranker-v2-gemma.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bei.architectures.family import Head, Judgement
from bei.architectures.spec import LAST, Dense, EncoderSpec
from bei.checkpoint.modules import read_json
from bei.errors import SetupError
from bei.settings import RerankTemplate


@dataclass(frozen=True)
class PairTemplate:
    """What stands before a pair, what it becomes, and what stands after: pieces that are tokenized each by itself, with
    {query}, {document} and {instruction} in them. `plain` is the body where there is no instruction, asked or default.
    `yes` and `no` are the words whose logits are compared; without a `no` the logit of `yes` is the score."""

    prefix: tuple[str, ...]
    body: tuple[str, ...]
    suffix: tuple[str, ...]
    yes: str
    no: str | None
    instruction: str | None = None
    plain: tuple[str, ...] = ()

    def pieces(self, query: str, document: str, instruction: str | None) -> tuple[tuple[str, ...], ...]:
        """The texts of prefix, body and suffix."""
        instruction = instruction or self.instruction
        body = self.body if instruction else self.plain
        fields = {"query": query, "document": document, "instruction": instruction}
        return tuple(tuple(piece.format(**fields) for piece in part) for part in (self.prefix, body, self.suffix))


TEMPLATES: dict[RerankTemplate, PairTemplate] = {
    "qwen3": PairTemplate(
        prefix=(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        ),
        body=("<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",),
        suffix=("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
        yes="yes",
        no="no",
        instruction="Given a web search query, retrieve relevant passages that answer the query",
    ),
    "mxbai": PairTemplate(
        prefix=(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n",
        ),
        body=("instruction: {instruction}\nquery: {query}", "\n", "document: {document}"),
        plain=("query: {query}", "\n", "document: {document}"),
        suffix=(
            "\n",
            "You are a search relevance expert who evaluates how well documents match search queries. For each "
            "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
            "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        yes="1",
        no="0",
    ),
    "bge_gemma": PairTemplate(
        prefix=("<bos>",),
        body=("A: {query}", "\n", "B: {document}"),
        suffix=("\n", "{instruction}"),
        yes="Yes",
        no=None,
        instruction="Given a query A and a passage B, determine whether the passage contains an answer to the query by "
        "providing a prediction of either 'Yes' or 'No'.",
    ),
}
_BY_MODEL: dict[str, RerankTemplate] = {"qwen3": "qwen3", "qwen2": "mxbai", "gemma": "bge_gemma"}


def pair_template(config: Mapping[str, Any], name: str, asked: RerankTemplate | None) -> PairTemplate | None:
    """The template that the settings ask for; else, of a language model that calls itself a reranker, its kind's."""
    if asked is None and "rerank" in name.lower():
        asked = template_of(config)
    return TEMPLATES.get(asked) if asked else None


def template_of(config: Mapping[str, Any]) -> RerankTemplate | None:
    """The one that rerankers of this kind of language model were trained with."""
    return _BY_MODEL.get(config.get("model_type", ""))


def judge(spec: EncoderSpec, judgement: Judgement) -> Head:
    """The score in the logits of the last token."""
    stage = (Dense(spec.hidden_size, 1, False, "identity"), ("lm_head", "embed_tokens"))
    return Head(pooling=LAST, stages=(stage,), judgement=judgement)


def judgement_of(template: PairTemplate, tokenizer_file: Path) -> Judgement:
    """The template's words in the vocabulary. Raises SetupError where they are not."""
    vocabulary = read_json(tokenizer_file).get("model", {}).get("vocab", {})
    vocabulary = vocabulary if isinstance(vocabulary, dict) else {word: i for i, (word, _) in enumerate(vocabulary)}
    words = [word for word in (template.yes, template.no) if word is not None]
    missing = [word for word in words if word not in vocabulary]
    if missing:
        raise SetupError(
            f"{tokenizer_file}: no token {missing[0]!r}, which its rerank template is answered by; "
            "set BEI_RERANK_TEMPLATE to another, or to none"
        )
    return Judgement(*(vocabulary[word] for word in words))
