"""A served model: whole and unchanging; each of its tasks asks first whether it is ready."""

import asyncio
import inspect
from dataclasses import FrozenInstanceError

import pytest

from bei.engines.null import NullEngine
from bei.errors import NotReady
from bei.serving.model import ServedModel
from bei.serving.service import Service
from bei.settings import Settings
from tests.support.configs import tiny_config


def test_a_model_that_stays_loading_is_not_handed_out(tiny_checkpoint):
    """It is made before the warm-up, and given after it."""
    service, seen = Service(Settings.load(tiny_config(), environ={})), []
    engine = NullEngine(tiny_checkpoint)

    class Watched(NullEngine):
        def run(self, batch):
            with pytest.raises(NotReady, match="the model is loading") as refused:
                _ = service.model
            seen.append(refused)
            return engine.run(batch)

    service.start(tiny_checkpoint, Watched(tiny_checkpoint))
    assert seen
    assert service.model.checkpoint is tiny_checkpoint
    service.close()


TASKS = {
    "embed": (["a"],),
    "embed_chunks": (["a"],),
    "embed_tokens": (["a"],),
    "embed_sparse": (["a"],),
    "similarity": ("a", ["b"]),
    "rerank": ("a", ["b"]),
    "score": ([("a", "b")],),
    "classify": (["a"],),
    "classify_tokens": (["a"],),
    "zero_shot": (["a"], ["b"]),
    "entities": (["a"],),
    "named_entities": (["a"], {"b": "b"}, None),
    "tokenize": (["a"],),
    "decode": ([[1]],),
    "prompts": (),
}


def test_every_task_asks_first_whether_the_model_is_ready(start_service):
    """Also of a model that somebody held before, whatever its own task."""
    public = {name for name, of in vars(ServedModel).items() if callable(of) and not name.startswith("_")}
    assert public - {"has", "lowered"} == TASKS.keys()  # these need no engine
    service = start_service()
    model = service.model

    async def ask(name):
        words = {"before": "", "after": ""} if name == "zero_shot" else {}
        answer = getattr(model, name)(*TASKS[name], **words)
        return await answer if inspect.isawaitable(answer) else answer

    def refused(words):
        for name in TASKS:
            with pytest.raises(NotReady, match=f"^{words}$"):
                asyncio.run(ask(name))

    model.engine.fault = "the engine is restarting"
    refused("the engine is restarting")
    model.engine.fault = None
    for state, words in (("failed", "the model failed to load"), ("loading", "the model is loading")):
        service.readiness.state = state
        refused(words)
        with pytest.raises(NotReady, match=f"^{words}$"):
            _ = service.model
    service.drain()
    refused("the model is draining")
    assert service.model is model


def test_nothing_of_a_served_model_changes(start_service):
    model = start_service().model
    for name in ("checkpoint", "engine", "route", "anything"):
        with pytest.raises(FrozenInstanceError):
            setattr(model, name, None)
