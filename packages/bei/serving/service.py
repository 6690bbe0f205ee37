"""The life cycle of one model: load, start, check, drain, close."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from bei import logs, memory
from bei.batching import Limits, Queue
from bei.checkpoint import sources
from bei.checkpoint.load import Checkpoint
from bei.engines import choice
from bei.engines.base import Engine, EngineFacts
from bei.engines.replicas import Replicas
from bei.errors import Error, NotReady, one_line, refusing
from bei.inflight import InFlight
from bei.metrics import Metrics
from bei.remote import RemoteEngine, RemoteScheduler
from bei.scheduler import Scheduler
from bei.serving import ranges
from bei.serving.model import ServedModel
from bei.serving.pipeline import Pipeline
from bei.serving.readiness import Readiness
from bei.serving.routes import default_route
from bei.serving.texts import TextReader
from bei.settings import Settings
from bei.settings.devices import processors_of
from bei.slots import Share, Slots
from bei.tasks import sparse
from bei.tracing import Tracer

log = logging.getLogger("bei")

_PROBE_AFTER = 30.0  # seconds without a finished batch after which a health check runs one
_PROBE_TIMEOUT = 30.0


class Service:
    """Makes one model ready, and ends it. `model` has its parts and its tasks."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        isolated: bool = False,
        in_flight: InFlight | None = None,
        processors: Slots | None = None,
    ):
        """`metrics`, `tracer`, `in_flight` and `processors` are the server's. Without them the service has its own, and
        traces nothing. `isolated` runs the engine in a process of its own, whose crash the service survives."""
        self.settings = settings
        self.metrics, self.tracer = metrics or Metrics(), tracer
        self.model_metrics = self.metrics.of_model(settings.served_model_name)
        self.readiness = Readiness()
        self._processors = processors
        self._model: ServedModel | None = None
        self._isolated = Replicas(settings, self.model_metrics) if isolated else None
        self.in_flight = in_flight or InFlight(
            max(settings.payload_limit, settings.max_bytes_in_flight), on_calm=memory.Trimmer().soon
        )

    @property
    def model(self) -> ServedModel:
        """Raises NotReady until there is one."""
        if self._model is None or self.readiness.state in ("loading", "failed"):
            raise self.readiness.refusal()
        return self._model

    @property
    def checkpoint(self) -> Checkpoint | None:
        """None until it is loaded."""
        return None if self._model is None else self._model.checkpoint

    @property
    def has_labels(self) -> bool:
        """Whether the model scores, classifies or tags; false until it is loaded."""
        return self._model is not None and self._model.has_labels

    def load(self) -> None:
        """Fetches and reads the checkpoint, makes the engine, and runs one batch; then the service is ready. Blocking.
        Raises SetupError."""
        if self.settings.without_effect:
            log.warning("trt_llm: without effect here: %s", ", ".join(self.settings.without_effect))
        try:
            with refusing():
                with logs.step(f"checkpoint {self.settings.public_repo}"):
                    checkpoint = sources.load(self.settings)
                with logs.step("engine"):
                    engine = self._engine_of(checkpoint)
                self.start(checkpoint, engine)
        except BaseException:
            self.readiness.state = "failed"
            raise

    def _engine_of(self, checkpoint: Checkpoint) -> Engine:
        """In processes of its own, where that is asked for or there are devices, unless the model has no layers: what
        an engine does then cannot crash."""
        if not checkpoint.spec.layers:
            self._do_without_processes()
        elif self._isolated is None and self.settings.devices is not None:
            self._isolated = Replicas(self.settings, self.model_metrics)
        return self._isolated.load(checkpoint) if self._isolated else choice.create(self.settings, checkpoint)

    def _do_without_processes(self) -> None:
        if self.settings.devices is not None:
            log.warning("devices: without effect, since the model is a table of vectors")
        if self._isolated is not None:
            self._isolated.abandon()
            self._isolated = None

    def start(self, checkpoint: Checkpoint, engine: Engine) -> None:
        """Serves a checkpoint on an engine: the second half of `load`."""
        settings = self.settings
        limits = Limits(
            batch_tokens=min(settings.max_num_tokens, engine.facts.token_budget),
            batch_size=settings.max_batch_size,
            tokens=settings.max_queue_tokens,
            size=settings.max_queue_texts,
            requests=settings.max_concurrent_requests,
            brief_apart=engine.facts.has_brief_slot,
        )
        keep = partial(sparse.terms, most=checkpoint.max_terms) if checkpoint.task == "sparse" else np.asarray
        scheduler = Scheduler(
            engine,
            Queue(limits),
            keep=keep,
            max_seconds=settings.max_queue_seconds,
            metrics=self.model_metrics,
            share=self._share_of(engine.facts),
        )
        self.join(checkpoint, engine, scheduler)

    def _share_of(self, facts: EngineFacts) -> Share | None:
        """An engine's share of the processors; None for one that needs none."""
        if self._processors is None or not facts.processors:
            return None
        named = processors_of(facts.devices)
        return self._processors.share(
            facts.streams, facts.processors, has_brief_slot=facts.has_brief_slot, processors=named
        )

    def join(
        self,
        checkpoint: Checkpoint,
        engine: Engine | RemoteEngine,
        scheduler: Scheduler | RemoteScheduler,
        before_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Serves a checkpoint on a scheduler, which may be in another process. Calls `before_ready` before it is
        ready."""
        memory.give_back_large_blocks()
        model = self._model = self._made(checkpoint, engine, scheduler)
        with logs.step("warm-up"):
            asyncio.run(model.pipeline.probe())
        before_ready()
        if self.readiness.state == "loading":  # otherwise it was stopped meanwhile
            self.readiness.state = "ready"
            self.model_metrics.set_ready(True)
        facts = engine.facts
        self.model_metrics.observe_engine(facts.name, facts.device, facts.computes_in, facts.streams)

    def _made(
        self, checkpoint: Checkpoint, engine: Engine | RemoteEngine, scheduler: Scheduler | RemoteScheduler
    ) -> ServedModel:
        settings, in_flight, metrics = self.settings, self.in_flight, self.model_metrics
        texts = TextReader(settings, checkpoint)
        return ServedModel(
            settings=settings,
            checkpoint=checkpoint,
            engine=engine,
            scheduler=scheduler,
            texts=texts,
            pipeline=Pipeline(settings, checkpoint, engine, scheduler, texts, in_flight, metrics),
            in_flight=in_flight,
            metrics=metrics,
            readiness=self.readiness,
            route=default_route(settings, checkpoint),
            has_labels=bool(checkpoint.labels),
            int8_ranges=ranges.read(settings.int8_ranges, checkpoint) if settings.int8_ranges else None,
        )

    async def check(self) -> None:
        """Raises NotReady unless requests are answered and a batch ended in the last 30 s; without one it runs one."""
        model = self.model
        self.readiness.check(model.engine)
        scheduler = model.scheduler
        idle = time.monotonic() - scheduler.last_success
        if scheduler.failing or idle > _PROBE_AFTER:
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT):
                    await model.pipeline.probe()
            except (Error, TimeoutError) as exc:
                raise NotReady(f"the engine does not answer: {one_line(exc)}") from None

    def on_fault(self, told: Callable[[], None]) -> None:
        """Has `told` called when the engine's `fault` changes."""
        if self._isolated is not None:
            self._isolated.on_fault = told

    def drain(self) -> None:
        """Admits no more requests; queued ones continue, oldest first."""
        self.readiness.state = "draining"
        if self._model is not None:
            self._model.scheduler.drain()
        self.model_metrics.set_ready(False)

    def close(self) -> None:
        """Drains, waits for queued requests, and stops the threads."""
        self.drain()
        if self._model is not None:
            self._model.scheduler.close()
            self._model.pipeline.close()
        if self._isolated is not None:
            self._isolated.close()
