"""Tiny JinaForRankings, and their scores by the published code, in our words: one document after the other."""

import json
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from tests.support.language_models import byte_level
from tests.support.tiny_models import random_model, write_json

DOCUMENT, QUERY = "<|embed_token|>", "<|rerank_token|>"
BEFORE = (
    "<|im_start|>system\nYou are a search relevance expert who can determine a ranking of the passages based on how "
    "relevant they are to the query. If the query is a question, how relevant a passage is depends on how well it "
    "answers the question. If not, try to analyze the intent of the query and assess how well each passage satisfies "
    "the intent. If an instruction is provided, you should follow the instruction when determining the ranking."
    "<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def tokenizer() -> Tokenizer:
    made = byte_level()
    made.add_special_tokens([AddedToken(token, special=True) for token in (DOCUMENT, QUERY)])
    return made


def save_list_ranker(folder, seed: int = 0, **options):
    """With the names of tensors and the keys of config.json that jina-reranker-v3 has. Weights are the larger, the
    further the scores of documents lie apart."""
    model = random_model("qwen3", seed, "", vocab_size=640, max_position_embeddings=131072, **options)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    hidden = model.config.hidden_size
    torch.manual_seed(seed)
    tensors = {
        f"model.{name.removeprefix('model.')}": of for name, of in load_file(folder / "model.safetensors").items()
    }
    tensors["projector.0.weight"] = torch.randn(hidden // 2, hidden) / hidden**0.5
    tensors["projector.2.weight"] = torch.randn(512, hidden // 2) / hidden**0.5
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    own = {"architectures": ["JinaForRanking"], "auto_map": {"AutoModel": "modeling.JinaForRanking"}}
    write_json(folder / "config.json", config | own)
    tokenizer().save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"model_max_length": 131072, "pad_token": "<|endoftext|>"})
    return folder


@dataclass
class Published:
    """The published `rerank` over transformers' Qwen3Model."""

    folder: object
    query_tokens: int = 512
    document_tokens: int = 2048
    documents: int = 125
    max_length: int = 131072

    def __post_init__(self):
        tensors = load_file(self.folder / "model.safetensors")
        self.model = Qwen3Model(Qwen3Config.from_pretrained(self.folder, attn_implementation="eager")).eval()
        self.model.load_state_dict(
            {n.removeprefix("model."): of for n, of in tensors.items() if n.startswith("model.")}
        )
        self.layers = [tensors[f"projector.{i}.weight"].float() for i in (0, 2)]
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer())

    def prompt(self, query: str, documents: list[str], instruction: str | None = None) -> str:
        query, *documents = (text.replace(QUERY, "").replace(DOCUMENT, "") for text in (query, *documents))
        asked = (
            f"I will provide you with {len(documents)} passages, each indicated by a numerical identifier. "
            f"Rank the passages based on their relevance to query: {query}\n"
        )
        if instruction:
            asked += f"<instruct>\n{instruction}\n</instruct>\n"
        passages = [f'<passage id="{i}">\n{text}{DOCUMENT}\n</passage>' for i, text in enumerate(documents)]
        return BEFORE + asked + "\n".join(passages) + f"\n<query>\n{query}{QUERY}\n</query>" + AFTER

    def rows(self, query: str, documents: list[str], instruction: str | None = None) -> np.ndarray:
        """float32[documents + 1, 512], that of the query last."""
        ids = self.tokenizer(self.prompt(query, documents, instruction), return_tensors="pt").input_ids
        with torch.no_grad():
            states = self.model(ids).last_hidden_state[0]
            first, second = self.layers
            projected = torch.relu(states @ first.T) @ second.T
        places = [i for mark in (DOCUMENT, QUERY) for i in np.flatnonzero(ids[0] == self.id(mark))]
        return projected[places].numpy()

    def id(self, token: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(token)

    def cut(self, text: str, most: int) -> tuple[str, int]:
        ids = self.tokenizer(text, truncation=True, max_length=most).input_ids
        return (self.tokenizer.decode(ids) if len(ids) >= most else text), len(ids)

    def blocks(self, query: str, documents: list[str]) -> tuple[str, list[list[str]]]:
        query, length = self.cut(query, self.query_tokens)
        blocks, block, capacity = [], [], self.max_length - 2 * length
        for text, count in (self.cut(document, self.document_tokens) for document in documents):
            block.append(text)
            capacity -= count
            if len(block) >= self.documents or capacity <= self.document_tokens:
                blocks.append(block)
                block, capacity = [], self.max_length - 2 * length
        return query, blocks + ([block] if block else [])

    def rerank(self, query: str, documents: list[str], instruction: str | None = None) -> np.ndarray:
        query, blocks = self.blocks(query, documents)
        found = [self.rows(query, block, instruction) for block in blocks]
        weights = [max((1 + cosine(rows[-1], row)) / 2 for row in rows[:-1]) for rows in found]
        mean = np.average([rows[-1] for rows in found], axis=0, weights=weights)
        return np.array([cosine(mean, row) for rows in found for row in rows[:-1]])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
