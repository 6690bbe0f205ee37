"""Tiny random GLiNER2s in the layout of the library `gliner2`, and their arithmetic once more, plainly, in torch.

`Reference2` gave the entities of gliner2 2.1.0's `extract_entities`, and its scores within 4e-6: three seeds of the
kinds of tests/tasks/test_gliner2.py, on the texts there.
"""

import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from torch import nn

from tests.support.gliner_models import POOLED, SPECIALS, Holder, Reference, marker
from tests.support.tiny_models import VOCAB, WORDS, random_model, word_pieces, write_json

TOKENS = ("[SEP_STRUCT]", "[SEP_TEXT]", "[P]", "[C]", "[E]", "[R]", "[L]", "[EXAMPLE]", "[OUTPUT]", "[DESCRIPTION]")


def mlp(*sizes: int) -> nn.Sequential:
    layers = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def counting(kind: str, width: int) -> nn.Module:
    parts = {"pos_embedding": nn.Embedding(20, width), "gru": nn.GRU(width, width)}
    if kind == "count_lstm":
        return Holder(**parts, projector=mlp(2 * width, 4 * width, width))
    layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
    small = Holder(
        in_projector=nn.Linear(width, 128),
        transformer=nn.TransformerEncoder(layer, 2),
        out_projector=mlp(128 + width, width, width, width),
    )
    return Holder(**parts, transformer=small)


def splitter() -> re.Pattern[str]:
    marks = "".join(chr(code) for code in range(0x110000) if unicodedata.category(chr(code)).startswith("M"))
    word = rf"[\w{marks}\u200c\u200d]"
    return re.compile(
        r"(?:https?://[^\s]+|www\.[^\s]+)|[a-z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,}|@[a-z0-9_]+"
        rf"|{word}+(?:[-_]{word}+)*|\S",
        re.IGNORECASE,
    )


@dataclass
class Reference2:
    config: dict
    model: nn.Module
    tokenizer: Tokenizer
    pattern: re.Pattern[str]

    @torch.no_grad()
    def predict(self, text, labels, threshold=0.5, flat_ner=True):
        """Each label alone. An entity may end with the period that the library puts after a text: it is left out."""
        words = list(self.pattern.finditer(text if text.endswith((".", "!", "?")) else f"{text}."))
        scores = self.scores([of[0].lower() for of in words], labels)
        kept = []
        for (start, end, label), score in sorted(scores.items(), key=lambda of: -of[1]):
            others = [of for of in kept if of[2] == label]
            if score >= threshold and not any(
                Reference.conflict((start, end), of[:2], flat_ner, False) for of in others
            ):
                kept.append((start, end, label, score))
        found = []
        for start, end, label, score in sorted(kept, key=lambda of: (of[0], -of[3])):
            first, last = words[start].start(), min(words[end].end(), len(text))
            if first < last:
                name = list(labels)[label]
                found.append({"start": first, "end": last, "text": text[first:last], "label": name, "score": score})
        return found

    def scores(self, words, labels):
        """(start, end, label) → score"""
        states, _, owners = self.states(words, labels)
        marks = [i for i, of in enumerate(owners) if of[0] == "mark"]
        schema, kinds = states[marks[0]], states[marks[1:]]
        if self.model.count_pred(schema).argmax() == 0:
            return {}
        queries = self.counted(kinds)
        pool = POOLED[self.config["token_pooling"]]
        rows = torch.stack(
            [pool(states[[i for i, of in enumerate(owners) if of == ("word", w)]]) for w in range(len(words))]
        )
        layer, found = self.model.span_rep.span_rep_layer, {}
        first, last = layer.project_start(rows), layer.project_end(rows)
        for start in range(len(rows)):
            for end in range(start, min(start + self.config["span_head"]["max_width"], len(rows))):
                span = layer.out_project(torch.cat([first[start], last[end]]).relu())
                for label, score in enumerate((queries @ span).sigmoid().tolist()):
                    found[start, end, label] = score
        return found

    def counted(self, kinds):
        layer = self.model.count_embed
        position = layer.pos_embedding.weight[0].expand(1, len(kinds), -1)
        stepped = layer.gru(position.contiguous(), kinds[None])[0][0]
        if self.config["counting_layer"] == "count_lstm":
            return layer.projector(torch.cat([stepped, kinds], 1))
        whole = stepped + kinds
        small = layer.transformer
        inner = small.transformer(small.in_projector(whole)[None])[0]
        return small.out_projector(torch.cat([inner, whole], 1))

    def states(self, words, labels):
        described = [(name, of) for name, of in labels.items() if of != name]
        schema = "entities" + "".join(f" [DESCRIPTION] {name}: {of}" for name, of in described)
        parts = [("(", "other"), ("[P]", "mark"), (schema, "other"), ("(", "other")]
        for name in labels:
            parts += [("[E]", "mark"), (name, "other")]
        parts += [(")", "other"), (")", "other"), ("[SEP_TEXT]", "other")]
        parts = [(part, (kind, 0)) for part, kind in parts] + [(word, ("word", i)) for i, word in enumerate(words)]
        ids, owners = [], []
        for part, owner in parts:
            read = self.tokenizer.encode(part, add_special_tokens=False).ids
            ids += read
            owners += [owner] * len(read)
        ids = torch.tensor(ids)
        states = self.model.encoder(ids[None], torch.ones_like(ids)[None]).last_hidden_state[0]
        return states, ids, owners


def gliner2(seed: int = 0, encoder: str = "deberta-v2", **fields) -> Reference2:
    tokenizer = word_pieces()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in TOKENS])
    config = {
        **{"model_type": "extractor", "architectures": ["SpanExtractorModel"], "architecture": "span"},
        **{"architecture_version": 1, "config_version": 3, "model_name": "a/tiny-encoder", "token_pooling": "first"},
        **{"counting_layer": "count_lstm", "attn_implementation": "sdpa", "max_len": None},
        **{"span_head": {"max_width": 3, "span_mode": "markerV0", "dropout": 0.1}, **fields},
    }
    inner = random_model(encoder, seed, vocab_size=len(VOCAB) + len(TOKENS))
    width = inner.config.hidden_size
    model = Holder(
        encoder=inner,
        span_rep=Holder(span_rep_layer=marker(width, "markerV0")),
        classifier=mlp(width, 2 * width, 1),
        count_pred=mlp(width, 2 * width, 20),
        count_embed=counting(config["counting_layer"], width),
    ).eval()
    return balanced(Reference2(config, model, tokenizer, splitter()))


@torch.no_grad()
def balanced(reference: Reference2) -> Reference2:
    """With scores on both sides of 0.5 that are far from one another and from 0 and 1, for texts that have entities."""
    model, labels, words = reference.model, {"cat": "cat", "big dog": "big dog", "tree": "tree"}, WORDS[:9]
    model.count_pred[2].bias.data[3] += 10

    def logits() -> torch.Tensor:
        return torch.tensor(list(reference.scores(words, labels).values())).logit()

    states, _, owners = reference.states(words, labels)
    name = reference.counted(states[[i for i, of in enumerate(owners) if of[0] == "mark"][1:]]).mean(0)
    last = model.span_rep.span_rep_layer.out_project[3]
    last.bias.data -= logits().mean() * name / name.square().sum()
    scale = 1.5 / logits().std()
    for parameter in last.parameters():
        parameter.data *= scale
    return reference


def save_gliner2(folder: Path, reference: Reference2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", reference.config)
    write_json(folder / "encoder_config" / "config.json", reference.model.encoder.config.to_dict())
    tensors = {name: tensor.contiguous() for name, tensor in reference.model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    reference.tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIALS})
    return folder
