"""`bei.Model`: the answers of a server, without one."""

import asyncio
import re
import sys
import threading
from enum import StrEnum
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch.utils.data import DataLoader

import bei
from bei import inprocess
from bei.errors import Invalid, NotReady, SetupError, WrongTask
from tests.support.calls import post
from tests.support.gliner_models import gliner, save_gliner
from tests.support.task_models import KINDS, OWN, QUERY, TEXTS, start

RNG = np.random.default_rng(0)
MANY = [f"the {word} {'sat ' * (i % 40)}" for i in range(150) for word in ("cat", "dog")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each kind of model on disk."""
    made = {}
    for kind, make in KINDS.items():
        made[kind] = make(tmp_path_factory.mktemp(kind)).folder
    return made


@pytest.fixture(scope="module")
def models(folders):
    found = {}
    for kind, folder in folders.items():
        pooling = "splade" if kind == "sparse" else None
        found[kind] = bei.Model(folder, engine="torch", precision="fp32", pooling=pooling)
    yield found
    for model in found.values():
        model.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The answers of a server."""
    found = {}
    for kind, make in KINDS.items():
        service = start(make(tmp_path_factory.mktemp(f"served-{kind}")))
        found[kind] = post(service, *OWN[kind])
        service.close()
    return found


def test_embed(models, served):
    expected = [of["embedding"] for of in served["embedding"]["data"]]
    np.testing.assert_allclose(models["embedding"].embed(TEXTS), expected, atol=1e-6)
    assert models["embedding"].dimensions == len(expected[0])


def test_rerank_and_score(models, served):
    expected = [rank["score"] for rank in sorted(served["reranker"], key=lambda rank: rank["index"])]
    found = models["reranker"].rerank(QUERY, TEXTS)
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS),))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(models["reranker"].score([(QUERY, text) for text in TEXTS]), expected, atol=1e-6)


def test_classify(models, served):
    found, labels = models["classifier"].classify(TEXTS), models["classifier"].labels
    expected = [{of["label"]: of["score"] for of in row} for row in served["classifier"]]
    np.testing.assert_allclose(found, [[row[label] for label in labels] for row in expected], atol=1e-6)


def test_entities(models, served):
    found = models["entities"].entities(TEXTS, strategy="none")
    assert [[(of.token, of.start, of.end) for of in row] for row in found] == [
        [(of["token"], of["start"], of["end"]) for of in row] for row in served["entities"]
    ]


def test_entities_that_are_named(tmp_path):
    reference = gliner()
    with bei.Model(save_gliner(tmp_path / "gliner", reference), engine="torch", precision="fp32") as model:
        for labels in (["cat", "tree"], {"cat": "cat", "tree": "tree"}):
            found = model.named_entities(TEXTS, labels, threshold=0.3, flat_ner=False)
            for text, row in zip(TEXTS, found, strict=True):
                expected = reference.predict(text, ["cat", "tree"], threshold=0.3, flat_ner=False)
                assert [(of.token, of.start, of.end) for of in row] == [
                    (of["text"], of["start"], of["end"]) for of in expected
                ]
        for wrong in ({"labels": []}, {"labels": "cat"}, {"labels": ["cat"], "threshold": 2.0}):
            with pytest.raises(Invalid, match=list(wrong)[-1]):
                model.named_entities(TEXTS, **wrong)
        with pytest.raises(Invalid, match="labels"):
            model.entities(TEXTS)


def test_sparse(models, served):
    for terms, row in zip(models["sparse"].sparse(TEXTS), served["sparse"], strict=True):
        assert terms.indices.tolist() == [of["index"] for of in row]
        np.testing.assert_allclose(terms.values, [of["value"] for of in row], atol=1e-6)


def test_tokens(models, served):
    for row, expected in zip(models["multi_vector"].embed_tokens(TEXTS), served["multi_vector"], strict=True):
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_a_long_list_keeps_its_order(models, capsys):
    whole = models["embedding"].embed(MANY, show_progress=True)
    assert "300/300" in capsys.readouterr().err
    some = models["embedding"].embed([MANY[299], MANY[0], MANY[150]])
    np.testing.assert_allclose(whole[[299, 0, 150]], some, atol=1e-6)


def test_no_texts(models):
    assert models["embedding"].embed([]).shape == (0, models["embedding"].dimensions)
    assert models["embedding"].embed([], dimensions=4).shape == (0, 4)
    assert models["reranker"].rerank(QUERY, []).shape == (0,)
    assert models["classifier"].classify([]).shape == (0, 3)
    assert models["entities"].entities([]) == []


def test_calls_of_several_threads(models):
    expected, found = models["embedding"].embed(MANY[:8]), {}

    def call(i: int) -> None:
        found[i] = models["embedding"].embed([MANY[i]])

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(np.concatenate([found[i] for i in range(8)]), expected, atol=1e-6)


def test_async_twins_and_a_loop_that_runs(models):
    """A notebook's thread has a loop that runs; the plain methods answer there, too."""

    async def both() -> tuple[np.ndarray, np.ndarray]:
        return await models["embedding"].aembed(TEXTS), models["embedding"].embed(TEXTS)

    awaited, plain = asyncio.run(both())
    np.testing.assert_array_equal(awaited, plain)


def test_refusals_are_the_servers(models):
    with pytest.raises(WrongTask, match="Model is not an embedding model"):
        models["classifier"].embed(TEXTS)
    with pytest.raises(Invalid, match="`dimensions` must be between"):
        models["embedding"].embed(TEXTS, dimensions=9999)
    with pytest.raises(Invalid, match="put it in a list"):
        models["embedding"].embed("one text")
    for pairs in (TEXTS, [("one",)], [("one", "two", "three")]):
        with pytest.raises(Invalid, match=r"`pairs\[0\]`: a pair has two texts"):
            models["reranker"].score(pairs)


@pytest.mark.parametrize(
    ("flags", "told"),
    [({"port": 80}, "port"), ({"presicion": "fp32"}, "presicion"), ({"pooling": "nothing"}, "pooling")],
)
def test_settings_are_checked(folders, flags, told):
    with pytest.raises(SetupError, match=told):
        bei.Model(folders["embedding"], **flags)


def test_a_context_manager_closes(folders):
    with bei.Model(folders["embedding"], engine="torch") as model:
        assert model.task == "embedding"
    model.close()
    assert not model._thread.is_alive()
    with pytest.raises(NotReady, match="the model is closed"):
        model.embed(TEXTS)


# -- as sentence-transformers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(folders) -> SentenceTransformer:
    encoder = Transformer(str(folders["embedding"]))
    pooling = Pooling(encoder.get_embedding_dimension(), "mean")
    prompts = {"query": "then ", "passage": "it was "}
    return SentenceTransformer(modules=[encoder, pooling], prompts=prompts, device="cpu")


CALLS = [
    {},
    {"normalize_embeddings": True},
    {"truncate_dim": 8},
    {"truncate_dim": 8, "normalize_embeddings": True},
    {"prompt_name": "query"},
    {"prompt": "it was "},
    {"precision": "int8"},
    {"precision": "ubinary"},
    {"convert_to_tensor": True},
    {"convert_to_numpy": False},
    {"batch_size": 2, "show_progress_bar": False, "device": "cpu"},
]


@pytest.mark.parametrize("options", CALLS, ids=str)
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[0]], ids=["texts", "a text"])
def test_encode_answers_as_sentence_transformers(models, reference, texts, options):
    if texts == TEXTS[0] and options.get("precision") == "int8":
        with pytest.raises(Invalid, match="one sentence has no ranges; set int8_ranges"):
            models["embedding"].encode(texts, **options)
        return
    found, expected = models["embedding"].encode(texts, **options), reference.encode(texts, **options)
    if options == {"convert_to_numpy": False}:  # arrays in place of tensors
        expected = [row.numpy() for row in expected] if texts is TEXTS else expected.numpy()
    assert type(found) is type(expected)
    found, expected = plain(found), plain(expected)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(found, expected, atol=1 if options.get("precision") else 1e-5)


def plain(rows) -> np.ndarray:
    return rows.numpy() if isinstance(rows, torch.Tensor) else np.array(rows)


# -- as an encoder of mteb ---------------------------------------------------------------------------------------------


class PromptType(StrEnum):
    """mteb's."""

    query = "query"
    document = "document"


def asked_by_mteb(model: bei.Model, texts: list[str], task: SimpleNamespace, kind: PromptType | None) -> np.ndarray:
    """As mteb 2.26 calls an encoder: EncoderProtocol of mteb/models/models_protocols.py, by its evaluators."""
    batches = DataLoader([{"id": str(i), "text": text} for i, text in enumerate(texts)], batch_size=2)
    options = {"hf_split": "test", "hf_subset": "default", "batch_size": 2, "show_progress_bar": False}
    return model.encode(batches, task_metadata=task, prompt_type=kind, **options)


@pytest.mark.parametrize("kind", [None, *PromptType])
def test_mteb_gets_what_sentence_transformers_answers(models, reference, kind):
    task = SimpleNamespace(name="STS12", type="STS")
    prompts = {None: None, PromptType.query: "query", PromptType.document: "passage"}
    found = asked_by_mteb(models["embedding"], TEXTS, task, kind)
    np.testing.assert_allclose(found, reference.encode(TEXTS, prompt_name=prompts[kind]), atol=1e-5)
    assert isinstance(models["embedding"].encode(iter(TEXTS)), np.ndarray)
    with pytest.raises(Invalid, match="a batch has no `text`, but image, id"):
        models["embedding"].encode([{"image": [0], "id": ["0"]}], task_metadata=task)


@pytest.mark.parametrize(
    ("names", "kind", "chosen"),
    [
        ("STS12-query STS12 STS-query STS query", PromptType.query, "STS12-query"),
        ("STS12 STS-query STS query", PromptType.query, "STS12"),
        ("STS-query STS query", PromptType.query, "STS-query"),
        ("STS query", PromptType.query, "STS"),
        ("query document", PromptType.query, "query"),
        ("corpus passage document query", PromptType.document, "document"),
        ("corpus passage query", PromptType.document, "passage"),
        ("STS12-query STS-query query", None, None),
        ("STS12-query STS query", None, "STS"),
        ("document", PromptType.query, None),
    ],
)
def test_the_prompt_of_a_task(names, kind, chosen):
    task = SimpleNamespace(name="STS12", type="STS")
    assert inprocess._prompt_of(task, kind, dict.fromkeys(names.split(), "")) == chosen


def test_similarity_is_that_of_sentence_transformers(models, reference):
    rows, others = RNG.normal(size=(3, 8)).astype(np.float32), RNG.normal(size=(5, 8)).astype(np.float32)
    model = models["embedding"]
    np.testing.assert_allclose(model.similarity(rows, others), reference.similarity(rows, others), atol=1e-6)
    np.testing.assert_allclose(model.similarity(rows[0], others), reference.similarity(rows[0], others), atol=1e-6)
    pairwise = reference.similarity_pairwise(rows, others[:3])
    np.testing.assert_allclose(model.similarity_pairwise(rows, others[:3]), pairwise, atol=1e-6)
    whole = np.array([[100, 100, 0]], np.int8)
    assert model.similarity(whole, whole) == pytest.approx(1)


def test_mteb_knows_its_name(models, monkeypatch):
    stand_in = SimpleNamespace(ModelMeta=SimpleNamespace(create_empty=dict))
    monkeypatch.setitem(sys.modules, "mteb.models", stand_in)
    monkeypatch.setitem(sys.modules, "mteb", SimpleNamespace(models=stand_in))
    meta = models["embedding"].mteb_model_meta
    assert meta.keys() == {"name", "revision"}
    assert re.fullmatch(r"bei/[^/]+", meta["name"])
