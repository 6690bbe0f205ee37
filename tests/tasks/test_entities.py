"""Entities against transformers' TokenClassificationPipeline on the same model: 250 texts of every kind."""

import asyncio
import random
import warnings

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers, processors

from bei.checkpoint.load import read
from bei.engines.base import EngineOptions
from bei.engines.torch.engine import TorchEngine
from bei.errors import Invalid
from bei.serving.answers import Options
from tests.support.entity_texts import texts
from tests.support.tiny_models import VOCAB, WORDS, random_model, save

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]
STRATEGIES = ["none", "simple", "first", "average", "max"]


def sentence_pieces(file) -> None:
    """A Unigram like XLM-RoBERTa's: no prefix marks the continuation of a word."""
    pieces = [(word, 0.0) for word in VOCAB[:5]]
    pieces += [("▁" + word, -3.0) for word in WORDS] + [(c, -6.0) for c in sorted({*"".join(VOCAB[25:]), "▁"})]
    library = Library(models.Unigram(pieces[: len(VOCAB)], unk_id=1))
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    library.add_special_tokens(VOCAB[:5])
    library.save(str(file))


@pytest.fixture(scope="module", params=["word pieces", "unigrams"])
def tagger(request, tmp_path_factory):
    """The folder of a tagger for 64 tokens whose labels change often."""
    folder = tmp_path_factory.mktemp("tagger")
    model = random_model("bert", 3, "ForTokenClassification", id2label=dict(enumerate(LABELS)))
    save(folder, model, pooling=None)
    if request.param == "unigrams":
        sentence_pieces(folder / "tokenizer.json")
    return folder


def pipeline(folder, strategy: str):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=64)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    stride = {} if strategy == "none" else {"stride": 62 // 4}
    return transformers.pipeline(
        "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy=strategy, device="cpu", **stride
    )


@pytest.fixture
def entities(tagger, start_service):
    checkpoint = read(tagger, "m")
    service = start_service(TorchEngine(checkpoint, EngineOptions(precision="fp32")), checkpoint)

    def run(inputs, **options):
        return asyncio.run(service.model.entities(inputs, **options)).rows

    return run


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_equal_the_pipeline_s(tagger, entities, strategy):
    inputs = texts(250)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own heuristic for tokenizers without a prefix
        expected = pipeline(tagger, strategy)(inputs)
    found = 0
    for text, ours, theirs in zip(inputs, entities(inputs, strategy=strategy), expected, strict=True):
        assert [(e.start, e.end, *e.results) for e in ours] == [
            (e["start"], e["end"], e["entity_group"]) for e in theirs
        ]
        np.testing.assert_allclose(
            [*(s for e in ours for s in e.results.values())], [e["score"] for e in theirs], atol=1e-5
        )
        assert all(e.token == text[e.start : e.end] and e.token_id == 0 for e in ours)
        found += len(ours)
    assert found > 1000


def test_none_is_every_token_with_its_best_label(tagger, entities):
    inputs = [text for text in texts(250) if len(text) < 60]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pipeline(tagger, "none")(inputs, ignore_labels=[])
    for ours, theirs in zip(entities(inputs), expected, strict=True):
        assert (ours[0].token, ours[-1].token) == ("[CLS]", "[SEP]"), "special tokens are in"
        rows = [(e.token, e.start, e.end, *e.results) for e in ours[1:-1]]
        assert rows == [(e["word"], e["start"], e["end"], e["entity"]) for e in theirs]
        scores = [score for e in ours[1:-1] for score in e.results.values()]
        np.testing.assert_allclose(scores, [e["score"] for e in theirs], atol=1e-5)


def test_none_of_a_long_text_has_each_token_once(entities):
    text = texts(1)[0]
    assert len(text) == 5000
    (tokens,) = entities([text])
    starts = [token.start for token in tokens[1:-1]]
    assert starts == sorted(starts)
    assert tokens[-2].end >= len(text.rstrip()) - 1, "nothing past the model's length is lost"
    assert [token.token for token in tokens].count("[CLS]") == 1 + text.count("[CLS]")


def test_raw_scores_are_every_label_s_logit(tagger, entities):
    (tokens,) = entities(["the cat"], raw_scores=True)
    assert all(list(token.results) == LABELS for token in tokens)
    model = transformers.AutoModelForTokenClassification.from_pretrained(tagger)
    ids = transformers.AutoTokenizer.from_pretrained(tagger)("the cat", return_tensors="pt")
    logits = model(**ids).logits[0].detach().numpy()
    np.testing.assert_allclose([list(token.results.values()) for token in tokens], logits, atol=1e-5)


def test_ignored_labels(entities):
    text = texts(3)[1]
    all_labels, some = (entities([text], strategy="simple", ignore_labels=n)[0] for n in ((), ("O", "PER")))
    assert {label for e in some for label in e.results} == {label for e in all_labels for label in e.results} - {
        "O",
        "PER",
    }


def test_alone_and_together(entities):
    inputs = texts(60)
    together = entities(inputs, strategy="max")
    for i in random.Random(1).sample(range(60), 20):
        (alone,) = entities([inputs[i]], strategy="max")
        assert [(e.start, e.end, *e.results) for e in alone] == [(e.start, e.end, *e.results) for e in together[i]]


def test_without_truncation_a_long_text_is_refused(entities):
    with pytest.raises(Invalid, match=r"must have at most 64 tokens\. Given: \d+ \(input 1\)"):
        entities(["the cat", "the cat " * 40], options=Options(truncate=False))
