"""Language models that rerank: the template of each, and the tokens whose logits are the score.

Sources: the model card of Qwen3-Reranker; mxbai_rerank/mxbai_rerank_v2.py of mixedbread's mxbai-rerank;
FlagLLMReranker of FlagEmbedding, for bge-reranker-v2-gemma; the model card of llama-nemotron-rerank-1b-v2; the chat
template and the score of zerank-1-small's own code, sigmoid(Yes / 5).
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bei.architectures.config import refuse_others
from bei.architectures.family import ScoreTokens, TaskHead
from bei.architectures.spec import LAST, Dense, EncoderSpec
from bei.checkpoint.modules import read_json
from bei.checkpoint.task import ranks_lists
from bei.errors import SetupError, short
from bei.settings import RerankTemplate

log = logging.getLogger("bei")


@dataclass(frozen=True)
class PairTemplate:
    """Prefix, body and suffix, which are tokenized separately, with the places {query}, {document} and {instruction}.
    `plain` is the body if neither the request nor the model has an instruction. The score is the logit of `yes`, minus
    that of `no` if there is one, divided by `temperature`. Without a `yes` the score is a classifier's. `strips`:
    blanks around the texts of a pair are left out."""

    prefix: tuple[str, ...]
    body: tuple[str, ...]
    suffix: tuple[str, ...]
    yes: str | None = None
    no: str | None = None
    instruction: str | None = None
    plain: tuple[str, ...] = ()
    temperature: float = 1.0
    strips: bool = False

    @property
    def takes_instruction(self) -> bool:
        return any("{instruction}" in piece for piece in (*self.body, *self.suffix))

    def pieces(self, query: str, document: str, instruction: str | None) -> tuple[tuple[str, ...], ...]:
        """The texts of prefix, body and suffix."""
        instruction = (instruction or self.instruction) if self.takes_instruction else None
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
    "zerank": PairTemplate(
        prefix=("<|im_start|>system\n",),
        body=(),
        plain=("{query}<|im_end|>\n<|im_start|>user\n{document}",),
        suffix=("<|im_end|>\n<|im_start|>assistant\n",),
        yes="Yes",
        temperature=5.0,
        strips=True,
    ),
    "nemotron": PairTemplate(
        prefix=("<|begin_of_text|>",),
        body=(),
        plain=("question:{query} \n \n passage:{document}",),
        suffix=(),
    ),
}
_BY_MODEL: dict[str, RerankTemplate] = {
    "qwen3": "qwen3",
    "qwen2": "mxbai",
    "gemma": "bge_gemma",
    "llama_bidirec": "nemotron",
}

_BY_NAME: dict[str, RerankTemplate] = {"zerank": "zerank"}
"""Beginnings of names of models that were trained with another template than their kind."""
_OTHERS = ("ctxl-rerank",)
"""Beginnings of names of models whose template is not here."""

_MAX_CARD = 1 << 16  # bytes of a model card that are read
_BETWEEN_TAGS = re.compile(r"[\[\],\n]")
_RERANKING = {"text-ranking", "reranker", "reranking", "rerank", "cross-encoder"}
_ROLES = re.compile(r"""==\s*['"](query|document)['"]""")


def pair_template(
    folder: Path, config: Mapping[str, Any], name: str, setting: RerankTemplate | None
) -> PairTemplate | None:
    """The template that the setting names; else, if the last part of the model's name says that it reranks, the
    template of its kind. Raises SetupError for a language model that says that it reranks and whose template is not
    known."""
    if setting is not None:
        return TEMPLATES.get(setting)
    if ranks_lists(config):
        return None
    own = name.rstrip("/").rsplit("/", 1)[-1].lower()
    by_name = next((template for begin, template in _BY_NAME.items() if own.startswith(begin)), None)
    named = "rerank" in own or by_name is not None
    found = (by_name or template_of(config)) if named and not own.startswith(_OTHERS) else None
    if found is not None:
        log.info("the name says that the model reranks: pairs are scored by the template `%s`", found)
        return TEMPLATES[found]
    if (config.get("architectures") or [""])[0].endswith("ForCausalLM") and (named or _says_that_it_reranks(folder)):
        raise SetupError(
            f"{short(name)} is a language model that reranks, and its template is not known here: set "
            f"BEI_RERANK_TEMPLATE to {', '.join(TEMPLATES)}, to a file of your own, or to none for an embedder"
        )
    return None


def _says_that_it_reranks(folder: Path) -> bool:
    """Whether the model card's tags, or a chat template for the roles of a pair, say that the model reranks."""
    said = {tag.strip(" -'\"\t").lower() for tag in _BETWEEN_TAGS.split(_card(folder))}
    return bool(said & _RERANKING) or set(_ROLES.findall(_chat_template(folder))) == {"query", "document"}


def _card(folder: Path) -> str:
    """`pipeline_tag` and `tags` in the front matter of README.md. It is read line by line: YAML could be a bomb."""
    said, of_tags = [], False
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as opened:
            first, *lines = opened.read(_MAX_CARD).splitlines() or [""]
    except OSError:
        return ""
    for line in lines if first.strip() == "---" else ():
        if line.startswith("---"):
            break
        if not line.startswith((" ", "-", "\t", "]")):
            of_tags = line.startswith(("tags:", "pipeline_tag:"))
        if of_tags:
            said.append(line.partition("#")[0].removeprefix("tags:").removeprefix("pipeline_tag:"))
    return "\n".join(said)


def _chat_template(folder: Path) -> str:
    try:
        with (folder / "chat_template.jinja").open(encoding="utf-8", errors="replace") as opened:
            return opened.read(_MAX_CARD)
    except OSError:
        return str(read_json(folder / "tokenizer_config.json").get("chat_template") or "")


def template_of(config: Mapping[str, Any]) -> RerankTemplate | None:
    """The name of the template with which rerankers of this kind of language model were trained."""
    return _BY_MODEL.get(config.get("model_type", ""))


def scoring_head(
    config: Mapping[str, Any], spec: EncoderSpec, score_tokens: ScoreTokens, temperature: float = 1.0
) -> TaskHead:
    """A head whose score is in the logits of the last token. Raises SetupError for a model that caps them."""
    cap = {"final_logit_softcapping": 30.0} if config.get("model_type") == "gemma2" else {}
    refuse_others({**cap, **config}, {"final_logit_softcapping": None})
    layer = (Dense(spec.hidden_size, 1, False, "identity"), _VOCABULARIES)
    return TaskHead(
        pooling=LAST, layers=(layer,), score_tokens=score_tokens, temperature=temperature * _temperature(config)
    )


_VOCABULARIES = ("lm_head", "embed_out", "embed_tokens", "wte", "embed_in", "word_embeddings")
"""The places of a language model's last matrix; the later ones if it is tied to the embeddings."""


def _temperature(config: Mapping[str, Any]) -> float:
    """The divisor of the logits: `logits_scaling` of Granite; `logit_scale` of Cohere is its inverse."""
    scale = config.get("logit_scale", 0.0625 if config.get("model_type") in ("cohere", "cohere2") else 1.0)
    return float(config.get("logits_scaling", 1.0)) / float(scale)


_MARKER = re.compile(r"<\|[^|<>\s]+\|>|</?s>|<(?:bos|eos|start_of_turn|end_of_turn)>|\[/?(?:INST|CLS|SEP)\]")


def warn_of_markers(template: PairTemplate, tokenizer: Mapping[str, Any]) -> None:
    """Logs the markers of turns in a template that are words to this tokenizer.json: the model has another template."""
    added = {token["content"] for token in tokenizer.get("added_tokens") or ()}
    parts = (template.prefix, template.body, template.plain, template.suffix)
    markers = dict.fromkeys(_MARKER.findall("".join(piece for part in parts for piece in part)))
    words = [marker for marker in markers if marker not in added]
    if words:
        log.warning("the rerank template's %s: no token of this tokenizer, so it is read as words", ", ".join(words))


def score_tokens_of(template: PairTemplate, tokenizer: Mapping[str, Any], tokenizer_file: Path) -> ScoreTokens:
    """The ids of the template's words in the content of tokenizer_file. Raises SetupError if the template has none, or
    the vocabulary lacks them."""
    if template.yes is None:
        raise SetupError("BEI_RERANK_TEMPLATE is for a classifier's score, and this model is a language model")
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    vocabulary = vocabulary if isinstance(vocabulary, dict) else {word: i for i, (word, _) in enumerate(vocabulary)}
    words = [word for word in (template.yes, template.no) if word is not None]
    missing = [word for word in words if word not in vocabulary]
    if missing:
        raise SetupError(
            f"{tokenizer_file}: no token {short(missing[0])}, which its rerank template is answered by; "
            "set BEI_RERANK_TEMPLATE to another, or to none"
        )
    return ScoreTokens(*(vocabulary[word] for word in words))
