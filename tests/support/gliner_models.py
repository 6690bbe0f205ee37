"""Tiny random GLiNERs in the layout of the library `gliner`, and their arithmetic once more, plainly, in torch.

The library wants transformers of another version, so it is not among the tests' packages. `Reference` gave the same
entities as gliner 0.2.29, and the same scores within 4e-6: three seeds of the kinds of
tests/tasks/test_named_entities.py, on the texts there, with every combination of its arguments.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from torch import nn

from tests.support.tiny_models import VOCAB, WORDS, random_model, word_pieces, write_json

MARKS = ("[FLERT]", "<<ENT>>", "<<SEP>>")
SPECIALS = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
POOLED = {"first": lambda x: x[0], "last": lambda x: x[-1], "mean": lambda x: x.mean(0), "max": lambda x: x.amax(0)}
SIZES = {"hidden_size": 32, "max_width": 3, "max_len": 12}


class Holder(nn.Module):
    """A module that only names others."""

    def __init__(self, **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def two(inputs: int, outputs: int, inner: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, inner), nn.ReLU(), nn.Dropout(), nn.Linear(inner, outputs))


def scorer(width: int) -> nn.Module:
    out = nn.Sequential(nn.Linear(3 * width, 4 * width), nn.Dropout(), nn.ReLU(), nn.Linear(4 * width, 3))
    return Holder(proj_token=nn.Linear(width, 2 * width), proj_label=nn.Linear(width, 2 * width), out_mlp=out)


def marker(width: int, mode: str) -> nn.Module:
    inner = 4 * width if mode == "markerV0" else 2 * width
    out = two(2 * width, width, inner) if mode == "markerV0" else nn.Linear(2 * width, width)
    return Holder(project_start=two(width, width, inner), project_end=two(width, width, inner), out_project=out)


@dataclass
class Reference:
    """A text at a time, without windows: scores of all spans, and the greedy choice among them."""

    config: dict
    model: nn.Module
    tokenizer: Tokenizer

    @torch.no_grad()
    def predict(self, text, labels, threshold=0.5, flat_ner=True, multi_label=False, windows=None):
        """As the library, which cuts a text at `max_len` words; or in windows, of which a span has its best score."""
        words = list(re.finditer(r"\w+(?:[-_]\w+)*|\S", text))
        scores = {}
        for part in windows or [range(min(len(words), self.config["max_len"]))]:
            here = [words[i][0] for i in part]
            for (start, end, label), score in (self.scores(here, labels) if here else {}).items():
                span = (start + part.start, end + part.start, label)
                scores[span] = max(score, scores.get(span, 0.0))
        found = [(*span, score) for span, score in scores.items() if score > threshold]
        kept = []
        for start, end, label, score in sorted(found, key=lambda of: -of[3]):
            if not any(self.conflict((start, end), of[:2], flat_ner, multi_label) for of in kept):
                kept.append((start, end, label, score))
        return [
            {
                **{"start": words[start].start(), "end": words[end].end()},
                **{"text": text[words[start].start() : words[end].end()], "label": labels[label], "score": score},
            }
            for start, end, label, score in sorted(kept, key=lambda of: of[0])
        ]

    @staticmethod
    def conflict(a, b, flat, each):
        if a == b:
            return not each
        apart = a[0] > b[1] or b[0] > a[1]
        nested = (a[0] <= b[0] and b[1] <= a[1]) or (b[0] <= a[0] and a[1] <= b[1])
        return not apart and (flat or not nested)

    def scores(self, words, labels):
        """(start, end, label) → score"""
        states, ids, owners = self.states(words, labels)
        ent = self.tokenizer.token_to_id("<<ENT>>")
        at = (ids == ent).nonzero()[:, 0] + (0 if self.config["embed_ent_token"] else 1)
        prompts = states[at]
        pooled = {
            "first": lambda x: x[0],
            "last": lambda x: x[-1],
            "mean": lambda x: x.mean(0),
            "max": lambda x: x.amax(0),
        }
        pool = pooled[self.config["subtoken_pooling"]]
        rows = torch.stack([pool(states[owners == i]) for i in range(len(words))])
        if hasattr(self.model, "rnn"):
            rows = self.model.rnn.lstm(rows[None])[0][0]
        return (
            self.of_words(rows, prompts) if self.config["span_mode"] == "token_level" else self.of_spans(rows, prompts)
        )

    def states(self, words, labels):
        """The states of all tokens, their ids, and the word that each belongs to."""
        prompt = [part for label in labels for part in ("<<ENT>>", label)] + ["<<SEP>>"]
        read = self.tokenizer.encode([*prompt, *words], is_pretokenized=True)
        owners = torch.tensor([-1 if of is None else of - len(prompt) for of in read.word_ids])
        ids = torch.tensor(read.ids)
        layer = self.model.token_rep_layer
        states = layer.bert_layer.model(ids[None], torch.ones_like(ids)[None]).last_hidden_state[0]
        return layer.projection(states) if hasattr(layer, "projection") else states, ids, owners

    def of_spans(self, rows, prompts):
        layer, names = self.model.span_rep_layer.span_rep_layer, self.model.prompt_rep_layer(prompts)
        first, last, found = layer.project_start(rows), layer.project_end(rows), {}
        for start in range(len(rows)):
            for end in range(start, min(start + self.config["max_width"], len(rows))):
                span = layer.out_project(torch.cat([first[start], last[end]]).relu())
                for label, score in enumerate((names @ span).sigmoid().tolist()):
                    found[start, end, label] = score
        return found

    def of_words(self, rows, prompts):
        layer, width = self.model.scorer, self.config["hidden_size"]
        words, labels = layer.proj_token(rows), layer.proj_label(prompts)
        found = {}
        for label, name in enumerate(labels):
            joined = [words[:, :width], name[:width].expand(len(rows), -1), words[:, width:] * name[width:]]
            first, last, inside = layer.out_mlp(torch.cat(joined, 1)).sigmoid().T.tolist()
            for start in range(len(rows)):
                for end in range(start, len(rows)):
                    found[start, end, label] = min(first[start], last[end], *inside[start : end + 1])
        return found


@torch.no_grad()
def balanced(reference: Reference) -> Reference:
    """With scores on both sides of 0.5 that are far from one another and from 0 and 1."""
    model, words = reference.model, WORDS[:9]

    def logits() -> torch.Tensor:
        return torch.tensor(list(reference.scores(words, ["cat", "big dog", "tree"]).values())).logit()

    if reference.config["span_mode"] == "token_level":
        last = model.scorer.out_mlp[3]
        last.weight.data *= 1.5 / logits().std()
        last.bias.data -= logits().mean()
        return reference
    marker, names = model.span_rep_layer.span_rep_layer, model.prompt_rep_layer
    states, ids, _ = reference.states(words, ["cat", "big dog", "tree"])
    name = names(states[ids == reference.tokenizer.token_to_id("<<ENT>>")]).mean(0)
    last = marker.out_project if reference.config["span_mode"] == "marker" else marker.out_project[3]
    last.bias.data -= logits().mean() * name / name.square().sum()
    scale = 1.5 / logits().std()
    for parameter in names[3].parameters():
        parameter.data *= scale
    return reference


def gliner(seed: int = 0, encoder: str = "deberta-v2", **fields) -> Reference:
    tokenizer = word_pieces()
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in MARKS])
    config = {
        **{"model_type": "gliner_uni_encoder_span", "model_name": "a/tiny-encoder", "span_mode": "markerV0", **SIZES},
        **{"subtoken_pooling": "first", "embed_ent_token": True, "num_rnn_layers": 1, "fuse_layers": False},
        **{"class_token_index": tokenizer.token_to_id("<<ENT>>"), "vocab_size": len(VOCAB) + 3},
        "words_splitter_type": "whitespace",
        **{"ent_token": "<<ENT>>", "sep_token": "<<SEP>>", "labels_encoder": None, "labels_decoder": None},
        **{"relations_layer": None, "post_fusion_schema": "", "represent_spans": False, "name": "tiny", **fields},
    }
    inner = random_model(encoder, seed, vocab_size=len(VOCAB) + 3)
    width, layer = config["hidden_size"], {"bert_layer": Holder(model=inner)}
    if width != inner.config.hidden_size:
        layer["projection"] = nn.Linear(inner.config.hidden_size, width)
    parts = {"token_rep_layer": Holder(**layer)}
    if config["num_rnn_layers"]:
        lstm = nn.LSTM(width, width // 2, config["num_rnn_layers"], batch_first=True, bidirectional=True)
        parts["rnn"] = Holder(lstm=lstm)
    if config["span_mode"] == "token_level":
        parts["scorer"] = scorer(width)
    else:
        parts["span_rep_layer"] = Holder(span_rep_layer=marker(width, config["span_mode"]))
        parts["prompt_rep_layer"] = two(width, width, 4 * width)
    model = Holder(**parts).eval()
    return balanced(Reference(config, model, tokenizer))


def save_gliner(folder: Path, reference: Reference, *, pickled: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    inner = reference.model.token_rep_layer.bert_layer.model
    write_json(folder / "gliner_config.json", {**reference.config, "encoder_config": inner.config.to_dict()})
    tensors = {name: tensor.contiguous() for name, tensor in reference.model.state_dict().items()}
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    reference.tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIALS})
    return folder


def rows(entities):
    """An answer as the library gives it."""
    for entity in entities:
        assert list(entity) == ["token", "token_id", "start", "end", "results"]
        assert entity["token_id"] == 0
        ((label, score),) = entity["results"].items()
        yield {"start": entity["start"], "end": entity["end"], "text": entity["token"], "label": label, "score": score}


def compare(answer, expected):
    found = list(rows(answer))
    scores, expected_scores = ([of.pop("score") for of in rows] for rows in (found, expected))
    assert found == expected
    np.testing.assert_allclose(scores, expected_scores, atol=2e-5)


def each_seed(metafunc: pytest.Metafunc) -> None:
    """`pytest_generate_tests` of a module whose models have a `seed`: one, or three by --every-seed."""
    if "seed" in metafunc.fixturenames:
        seeds = range(3) if metafunc.config.getoption("--every-seed") else [0]
        metafunc.parametrize("seed", seeds, scope="module")
