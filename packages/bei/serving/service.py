"""The life cycle of one model: load, start, check, drain, close."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import numpy as np

from bei import logs, memory
from bei.batching import Queue
from bei.checkpoint import sources
from bei.checkpoint.load import Checkpoint, read_for
from bei.engines import choice
from bei.engines.base import Engine, EngineFacts
from bei.engines.devices import ANY, Machine
from bei.engines.interpreters import Interpreters, starts_at_once
from bei.engines.replicas import Replicas
from bei.errors import Error, NotReady, one_line, refusing
from bei.inflight import InFlight
from bei.metrics import Metrics
from bei.remote import RemoteEngine, RemoteScheduler
from bei.scheduler import LAST_BATCH, Scheduler
from bei.serving import abilities, ranges
from bei.serving.abilities import Ability
from bei.serving.leases import Leases
from bei.serving.list_ranker import ListRanker
from bei.serving.model import ServedModel
from bei.serving.pipeline import Pipeline, limits
from bei.serving.readiness import Readiness, State
from bei.serving.routes import default_route
from bei.serving.span_finder import SpanFinder
from bei.serving.texts import TextReader
from bei.settings import Settings
from bei.settings.devices import processors_of
from bei.slots import Share, Slots
from bei.tasks import sparse
from bei.tasks.span_head import SpanHead
from bei.tracing import Tracer

log = logging.getLogger("bei")

_PROBE_AFTER = 30.0  # seconds without a finished batch after which a health check runs one
_PROBE_TIMEOUT = 30.0


class Service:
    """Makes one model ready, and ends it; it may become ready again after that. `model` has its parts and its tasks."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        interpreters: Interpreters | None = None,
        in_flight: InFlight | None = None,
        processors: Slots | None = None,
    ):
        """`metrics`, `tracer`, `in_flight` and `processors` are the server's, else its own. `interpreters` run the
        engine, whose crash the service survives. Raises SetupError for devices that the machine does not have."""
        self.settings = settings
        self.metrics, self.tracer = metrics or Metrics(), tracer
        self.model_metrics = self.metrics.of_model(settings.served_model_name)
        self.readiness = Readiness()
        self.leases = Leases()
        self.checkpoint: Checkpoint | None = None
        """As it was read last; None until it is read."""
        self._processors = processors
        self._share: Share | None = None
        self._is_on_demand = False
        """Whether a request that finds no model loads it, because it is lazy or was unloaded."""
        self._model: ServedModel | None = None
        self._interpreters = interpreters
        self._isolated: Replicas | None = None
        if starts_at_once(settings):
            self._start_process()
        elif interpreters:
            Machine().devices(settings.devices)  # refused now, and not at the first request
        self._on_fault: Callable[[], None] = lambda: None
        self.in_flight = in_flight or InFlight(
            max(settings.payload_limit, settings.max_bytes_in_flight), on_calm=memory.Trimmer().soon
        )

    @property
    def model(self) -> ServedModel:
        """Raises NotReady while there is none."""
        if self._model is None or self.readiness.state in ("loading", "failed"):
            raise self.readiness.refusal()
        return self._model

    @property
    def loaded(self) -> ServedModel | None:
        return self._model

    def lease(self) -> ServedModel | None:
        """The model, which stays until `leases.give_back`; None while there is none."""
        return self._model if self.leases.take() else None

    @property
    def route(self) -> str:
        """The path of the default route. Raises NotReady while the checkpoint is unknown."""
        return default_route(self.settings, self.known())

    @property
    def has_labels(self) -> bool:
        """Whether the model scores, classifies or tags; false while the checkpoint is unknown."""
        return self.checkpoint is not None and bool(self.checkpoint.labels)

    def has(self, ability: Ability) -> bool:
        """Whether the model has an ability, which it need not be loaded for. Raises NotReady while the checkpoint is
        unknown."""
        return abilities.has(self.known(), ability)

    def known(self) -> Checkpoint:
        """The checkpoint as it was read last. Raises NotReady while it is unknown."""
        if self.checkpoint is None:
            raise self.readiness.refusal()
        return self.checkpoint

    def read(self) -> Checkpoint:
        """Fetches the checkpoint, unless that is done, and reads it: its tensors are checked, and not read. Blocking.
        Raises SetupError."""
        known = self.checkpoint
        if known is None and self.settings.without_effect:
            log.warning("trt_llm: without effect here: %s", ", ".join(self.settings.without_effect))
        with logs.of_model(self.name), logs.step(f"checkpoint {self.settings.public_repo}"):
            if known is None or not known.folder.is_dir():
                found = sources.load(self.settings)
            else:  # of a repository, the same revision again
                found = read_for(self.settings, known.folder, known.revision)
        default_route(self.settings, found)
        self.checkpoint = found
        return found

    def defer(self, checkpoint: Checkpoint | None = None) -> None:
        """Reads the checkpoint, unless it is given; a request will load the model. Blocking. Raises SetupError."""
        with refusing():
            self.checkpoint = checkpoint or self.read()
        self.readiness.state, self._is_on_demand = "unloaded", True
        self.observe()

    def load(self) -> None:
        """Fetches and reads the checkpoint, makes the engine, and runs one batch; then the service is ready. Blocking.
        Raises SetupError."""
        if self.readiness.state == "unloaded":
            self.readiness.state = "loading"
        try:
            with refusing(), logs.of_model(self.name):
                self._start_process()
                checkpoint = self.read()
                with ThreadPoolExecutor(1, "tokenizer") as beside:  # a large one takes half a second
                    reading = beside.submit(TextReader, self.settings, checkpoint)
                    with logs.step("engine"):
                        engine = self._engine_of(checkpoint)
                    self.start(checkpoint, engine, reading.result)
        except BaseException:
            self.readiness.state = "failed"
            raise

    def _start_process(self) -> None:
        """Its imports run while the checkpoint is read. A model that is known to need none gets none."""
        is_needed = self.checkpoint is None or self.checkpoint.spec.layers
        if self._interpreters and self._isolated is None and is_needed:
            self._isolated = Replicas(self.settings, self._interpreters, self.model_metrics)

    def _engine_of(self, checkpoint: Checkpoint) -> Engine:
        """In processes of its own, where that is asked for or there are devices, unless the model has no layers: what
        an engine does then cannot crash."""
        if not checkpoint.spec.layers:
            self._do_without_processes()
        elif self._isolated is None and self.settings.devices is not None:
            self._isolated = Replicas(self.settings, Interpreters(), self.model_metrics)
        if self._isolated is None:
            return choice.create(self.settings, checkpoint)
        self._isolated.on_fault = self._on_fault
        return self._isolated.load(checkpoint)

    def _do_without_processes(self) -> None:
        if self.settings.devices is not None:
            log.warning("devices: without effect, since the model is a table of vectors")
        if self._isolated is not None:
            self._isolated.abandon()
            self._isolated = None

    def start(self, checkpoint: Checkpoint, engine: Engine, texts: Callable[[], TextReader] | None = None) -> None:
        """Serves a checkpoint on an engine: the second half of `load`. `texts` waits for the reader of texts."""
        settings = self.settings
        self._share = self._share_of(engine.facts)
        keep = partial(sparse.terms, most=checkpoint.max_terms) if checkpoint.task == "sparse" else np.asarray
        scheduler = Scheduler(
            engine,
            Queue(limits(settings, engine.facts)),
            keep=keep,
            max_seconds=settings.max_queue_seconds,
            metrics=self.model_metrics,
            share=self._share,
        )
        try:
            self.join(checkpoint, engine, scheduler, texts=texts)
        except BaseException:
            scheduler.close()
            raise

    def _share_of(self, facts: EngineFacts) -> Share | None:
        """An engine's share of the processors; None for one that needs none."""
        if self._processors is None or self._isolated is None or not facts.processors:
            return None
        named, brief, allow = processors_of(facts.devices), facts.has_brief_slot, self._isolated.allow
        return self._processors.share(
            facts.streams, facts.processors, has_brief_slot=brief, processors=named, allow=allow
        )

    def join(
        self,
        checkpoint: Checkpoint,
        engine: Engine | RemoteEngine,
        scheduler: Scheduler | RemoteScheduler,
        before_ready: Callable[[], None] = lambda: None,
        texts: Callable[[], TextReader] | None = None,
    ) -> None:
        """Serves a checkpoint on a scheduler of any process. Calls `before_ready` before it is ready."""
        memory.give_back_large_blocks()
        if self.readiness.state == "unloaded":
            self.readiness.state = "loading"
        self.checkpoint = checkpoint
        model = self._model = self._made(checkpoint, engine, scheduler, texts)
        with logs.of_model(self.name), logs.step("warm-up"):
            asyncio.run(model.pipeline.probe())
        before_ready()
        if self.readiness.state == "loading":  # otherwise it was stopped meanwhile
            self.readiness.state = "ready"
            self.leases.open()
        self.observe()

    def observe(self) -> None:
        """Notes in the metrics whether requests are answered, and the engine. A model of the same name may have noted
        its own."""
        self.model_metrics.set_ready(self.state in ("ready", "unloaded"))
        if self._model is not None:
            facts = self._model.engine.facts
            self.model_metrics.observe_engine(facts.name, facts.device, facts.computes_in, facts.streams)

    def _made(
        self,
        checkpoint: Checkpoint,
        engine: Engine | RemoteEngine,
        scheduler: Scheduler | RemoteScheduler,
        read: Callable[[], TextReader] | None,
    ) -> ServedModel:
        settings, in_flight, metrics = self.settings, self.in_flight, self.model_metrics
        texts, head = read() if read else TextReader(settings, checkpoint), checkpoint.gliner
        pipeline = Pipeline(settings, checkpoint, engine, scheduler, texts, in_flight, metrics)
        return ServedModel(
            settings=settings,
            checkpoint=checkpoint,
            engine=engine,
            scheduler=scheduler,
            texts=texts,
            pipeline=pipeline,
            in_flight=in_flight,
            metrics=metrics,
            readiness=self.readiness,
            route=default_route(settings, checkpoint),
            has_labels=bool(checkpoint.labels) or head is not None,
            int8_ranges=ranges.read(settings.int8_ranges, checkpoint) if settings.int8_ranges else None,
            span_finder=SpanFinder(SpanHead(head), texts, pipeline, in_flight, checkpoint) if head else None,
            list_ranker=ListRanker(texts, pipeline) if checkpoint.list_template else None,
        )

    async def check(self) -> None:
        """Raises NotReady unless requests are answered and a batch ended in the last 30 s; without one it runs one."""
        model = self.lease()
        if model is None:
            raise self.refusal()
        try:
            await self._check(model)
        finally:
            self.leases.give_back(is_use=False)

    async def _check(self, model: ServedModel) -> None:
        self.readiness.check(model.engine)
        scheduler = model.scheduler
        idle = time.monotonic() - scheduler.last_success
        if scheduler.failing or idle > _PROBE_AFTER:
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT):
                    await model.pipeline.probe()
            except (Error, TimeoutError) as exc:
                raise NotReady(f"the engine does not answer: {one_line(exc)}") from None

    @property
    def state(self) -> State:
        """A model that answers only the requests that hold it is draining."""
        is_ending = self.readiness.state == "ready" and not self.leases.is_open
        return "draining" if is_ending else self.readiness.state

    @property
    def is_required(self) -> bool:
        """Whether a server is only ready if this model is."""
        return not self._is_on_demand or (self.state == "ready" and not self.settings.lazy)

    def refusal(self) -> NotReady:
        return NotReady("the model is draining") if self.state == "draining" else self.readiness.refusal()

    def ended(self) -> NotReady:
        """The refusal of a request that held the model when it ended."""
        if self.readiness.state == "draining":
            return NotReady("the server stopped before the answer")
        return NotReady(f"the model {self.name} was unloaded before it answered this; send it again")

    def on_fault(self, told: Callable[[], None]) -> None:
        """Has `told` called when the engine's `fault` changes."""
        self._on_fault = told
        if self._isolated is not None:
            self._isolated.on_fault = told

    @property
    def devices(self) -> str:
        """Those of the loaded model, by the names of the metrics' labels; empty while there is none."""
        return "" if self._model is None else self._model.engine.facts.devices or ANY.name

    def memory(self) -> int:
        """The bytes of the loaded model: those of its engine's process (memory.of_processes), and on a device of its
        own, or without a process whose memory is told, the files of its weights. The tokenizer is not counted."""
        model = self._model
        if model is None:
            return 0
        processes = () if self._isolated is None or not memory.is_told() else self._isolated.processes
        return memory.of_processes(processes) + (self.device_memory() if processes else self.stored_bytes)

    def device_memory(self) -> int:
        """The bytes of the loaded model's weights on a device of its own, as they are stored."""
        model = self._model
        on_device = model is not None and not model.engine.facts.device.startswith("cpu")
        return self.stored_bytes if on_device else 0

    @property
    def stored_bytes(self) -> int:
        """The size of the files of weights; 0 while it is unknown."""
        with suppress(OSError):
            return 0 if self.checkpoint is None else self.checkpoint.tensors.stored_bytes
        return 0

    def drain(self) -> None:
        """Admits no more requests; queued ones continue, oldest first."""
        self.readiness.state = "draining"
        if self._model is not None:
            self._model.scheduler.drain()
        self.model_metrics.set_ready(False)

    def close(self) -> None:
        """Drains, waits for queued requests, and stops the threads."""
        self.drain()
        self._stop()

    def unload(self, seconds: float = 0) -> None:
        """Ends the model, and its engine's process, once the requests that hold it are answered, however long their
        queue is. If none is answered and no batch ends for so many seconds, the others get a 503. Blocking."""
        self._is_on_demand = True
        self.leases.close()
        are_answered = self.waits(self.leases.wait, seconds)
        if not are_answered:
            told = "no request was answered and no batch ended in %g s; the other %d requests get a 503"
            log.warning(told, seconds, self.leases.count)
        if self.readiness.state != "draining":
            self.readiness.state = "unloaded"
        self.model_metrics.set_ready(self.state == "unloaded")
        self._stop(LAST_BATCH if are_answered else 0.0)
        self._model = self._isolated = None
        self.in_flight.on_calm()

    def waits(self, ended: Callable[[float], bool], seconds: float) -> bool:
        """Calls `ended` with the seconds for which it may wait, until it returns true. Returns whether it did, before
        there were so many seconds without an answer or a batch of the model. Blocking."""
        until = time.monotonic() + seconds
        while not ended(max(0.0, until - time.monotonic())):
            batch = 0.0 if self._model is None else self._model.scheduler.last_success
            last = max(batch, self.leases.last_use) + seconds
            if last <= until:
                return False
            until = last
        return True

    def _stop(self, seconds: float = LAST_BATCH) -> None:
        """A batch that runs has so many seconds."""
        if self._model is not None:
            self._model.scheduler.close(seconds)
            self._model.pipeline.close()
        if self._isolated is not None:
            self._isolated.close()
        if self._share is not None:
            self._share.slots.leave(self._share)
            self._share = None

    @property
    def name(self) -> str:
        return self.settings.served_model_name
