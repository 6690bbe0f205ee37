"""Every head of every family against transformers on tiny random models, token types and all."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder import MultiVectorEncoder
from sentence_transformers.sentence_transformer.modules import Pooling

from bei.checkpoint.load import read
from bei.engines.base import Batch, Engine
from bei.errors import SetupError
from tests.support.model_options import families_with
from tests.support.parity import COLBERT, cosines, reference, sequences
from tests.support.tiny_models import DISENTANGLED, ENCODERS, VOCAB, random_model, save, write_json

LABELS = {0: "O", 1: "B-PER", 2: "I-PER"}
HIDE_OTHERWISE = (*DISENTANGLED, "xlnet", "esm")


def with_head(kind: str) -> list[tuple[str, int]]:
    """Each family with this head, and each seed."""
    return [(family, seed) for family in families_with(kind) for seed in range(3)]


def engine_for(make, folder, model, **options) -> Engine:
    return make(read(save(folder, model, pooling=None), "m", **options), precision="fp32")


def close(rows: np.ndarray, expected: np.ndarray) -> bool:
    return np.abs(rows - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def logits(model: torch.nn.Module, ids: list[list[int]]) -> list[np.ndarray]:
    """The logits of each sequence alone and unpadded."""
    with torch.no_grad():
        return [model(torch.tensor([s])).logits[0].numpy() for s in ids]


@cache
def expected_logits(model: torch.nn.Module, seed: int) -> list[np.ndarray]:
    """Computed once for all engines."""
    return logits(model, sequences(seed))


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize(("family", "seed"), with_head("SequenceClassification"))
def test_sequence_classification(make, saved, family, seed, labels):
    names = {i: f"label {i}" for i in range(labels)}
    model, folder = saved(family, seed, "ForSequenceClassification", pooling=None, id2label=names)
    engine = make(read(folder, "m"), precision="fp32")
    assert close(engine.run(Batch.pack(sequences(seed))), np.stack(expected_logits(model, seed)))


@pytest.mark.parametrize(("family", "seed"), with_head("TokenClassification"))
def test_token_classification(make, saved, family, seed):
    model, folder = saved(family, seed, "ForTokenClassification", pooling=None, id2label=LABELS)
    engine = make(read(folder, "m"), precision="fp32")
    rows = engine.run(Batch.pack(sequences(seed), row_kind="tokens"))
    assert close(rows, np.concatenate(expected_logits(model, seed)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "seed"), with_head("MaskedLM"))
def test_splade(make, saved, family, seed, tied):
    model, folder = saved(family, seed, "ForMaskedLM", pooling=None, tie_word_embeddings=tied)
    engine, ids = make(read(folder, "m", pooling="splade"), precision="fp32"), sequences(seed) * 2
    expected = np.stack([np.log1p(np.maximum(row, 0)).max(0) for row in expected_logits(model, seed) * 2])
    rows = engine.run(Batch.pack(ids))
    assert rows.shape == (len(ids), len(VOCAB))
    assert close(rows, expected)
    alone = np.concatenate([engine.run(Batch.pack([s])) for s in ids])
    assert close(rows, alone)


def test_token_types_reach_a_pair(make, tmp_path):
    model = random_model("bert", 0, "ForSequenceClassification", id2label={0: "relevant"})
    ids, types = [[2, 7, 3, 9, 10, 3]], [[0, 0, 0, 1, 1, 1]]
    with torch.no_grad():
        expected = model(torch.tensor(ids), token_type_ids=torch.tensor(types)).logits.numpy()
    assert np.abs(engine_for(make, tmp_path, model).run(Batch.pack(ids, types)) - expected).max() <= 1e-5


@pytest.mark.parametrize("family", [family for family in ENCODERS if family not in HIDE_OTHERWISE])
def test_tokens_after_the_attended_see_and_are_not_seen(make, tmp_path, family):
    """ColBERT's query expansion: mask tokens are queries but not keys."""
    model = random_model(family)
    checkpoint = replace(read(save(tmp_path, model), "m"), late_interaction=COLBERT)
    ids = [[2, 7, 8, 4, 4, 4], [2, 9, 4, 4, 4, 4], [2, 7, 8, 9, 10, 3], [2, 3]]
    attended = [3, 2, None, None]
    rows = make(checkpoint, precision="fp32").run(Batch.pack(ids, attended=attended, row_kind="tokens"))
    expected = reference(model, ids, attended)
    assert close(rows, expected)


@pytest.mark.parametrize("family", HIDE_OTHERWISE)
def test_a_model_that_hides_tokens_otherwise_is_no_colbert_with_padded_queries(tmp_path, family):
    folder = save(tmp_path, random_model(family), pooling=None)
    write_json(folder / "config_sentence_transformers.json", {"model_type": "ColBERT", "query_length": 6})
    with pytest.raises(SetupError, match="not attended to is not served"):
        read(folder, "m")
    attending = {"model_type": "ColBERT", "query_length": 6, "attend_to_expansion_tokens": True}
    write_json(folder / "config_sentence_transformers.json", attending)
    assert read(folder, "m").late_interaction.expansion == 6


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("modernbert", {"classifier_pooling": "mean", "classifier_activation": "relu", "classifier_bias": False}),
        ("eurobert", {"classifier_pooling": "bos"}),
        ("eurobert", {"classifier_pooling": "mean"}),
        ("deberta-v2", {"pooler_hidden_act": "relu"}),
        ("mobilebert", {"classifier_activation": False}),
        ("xlnet", {"summary_type": "mean", "summary_activation": "gelu"}),
        ("xlnet", {"summary_type": "first", "summary_use_proj": False, "summary_activation": ""}),
    ],
)
def test_a_classifier_pools_as_its_config_says(make, tmp_path, family, options):
    model = random_model(family, 0, "ForSequenceClassification", id2label=LABELS, **options)
    ids = sequences()
    assert close(engine_for(make, tmp_path, model).run(Batch.pack(ids)), np.stack(logits(model, ids)))


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"])
def test_bf16_is_close(make, tmp_path, head):
    model = random_model("bert", 0, head, id2label=LABELS)
    checkpoint = read(save(tmp_path, model, pooling=None), "m", pooling="splade" if head == "ForMaskedLM" else None)
    batch = Batch.pack(sequences())
    exact, rounded = (make(checkpoint, precision=p).run(batch) for p in ("fp32", "bf16"))
    assert cosines(exact, rounded).min() >= 0.999


def _around(place, pooling, dense):
    return [pooling, *dense] if place == "sentence_embedding" else [*dense, pooling]


@pytest.mark.parametrize("place", ["sentence_embedding", "token_embeddings"])
def test_dense_layers_that_add_their_input(tmp_path, make, place):
    """sentence-transformers' `use_residual`; the input is projected where the sizes differ."""
    base = save(tmp_path / "base", random_model("bert"), pooling=None)
    torch.manual_seed(1)
    options = {"module_input_name": place, "use_residual": True}
    dense = [Dense(48, 48, **options), Dense(48, 64, **options), Dense(64, 16, **options)]
    pooling = Pooling(48, "mean") if place == "sentence_embedding" else Normalize(module_input_name=place)
    modules = [Transformer(str(base), max_seq_length=64), *_around(place, pooling, dense)]
    kind = SentenceTransformer if place == "sentence_embedding" else MultiVectorEncoder
    kind(modules=modules, device="cpu").save(str(tmp_path / "model"))
    checkpoint = read(tmp_path / "model", "m")
    engine = make(checkpoint, precision="fp32")
    ids = sequences(0)
    texts = [{"input_ids": torch.tensor([s]), "attention_mask": torch.ones(1, len(s), dtype=torch.int64)} for s in ids]
    reference = kind(str(tmp_path / "model"), device="cpu")
    with torch.no_grad():
        expected = [reference(features)[place][0].numpy() for features in texts]
    if place == "sentence_embedding":
        assert close(engine.run(Batch.pack(ids)), np.stack(expected))
    else:
        assert close(engine.run(Batch.pack(ids, row_kind="tokens")), np.concatenate(expected))
