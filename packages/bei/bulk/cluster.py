"""A job's parts on a Ray cluster: Ray Data gives them to actors, each with a model of its own.

Input and output are paths that every node sees. Only part numbers go through Ray: an actor reads its part, writes it,
and returns its counts. An actor that dies is started again, and repeats the parts that it had not written.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

from bei import processes
from bei.bulk.inputs import take_long_fields
from bei.bulk.worker import PARTS_AT_ONCE, Done, Job, Worker
from bei.errors import SetupError, one_line, why


def run(job: Job, pending: list[int], address: str, workers: int | None) -> Iterator[Done]:
    """Do the pending parts, in any order, and yield the counts of each. `address` is `auto` for the cluster that this
    machine is a node of, `local` for one made for this run, or host:port. Raises SetupError."""
    _connect(address)
    try:
        needs, fitting = _resources(job.settings.threads)
        threads = dict.fromkeys(("threads", "tokenization_workers"), needs.cpus)
        job = replace(job, settings=job.settings.model_copy(update=threads))
        context = DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_options.preserve_order = False
        parts = ray.data.from_items([{"index": index} for index in pending], override_num_blocks=len(pending))
        pool = ActorPoolStrategy(
            size=min(workers or fitting, len(pending)),
            max_concurrent_calls_per_actor=PARTS_AT_ONCE,
            enable_true_multi_threading=True,
        )
        done = parts.map_batches(
            _Actor, fn_constructor_args=(job,), batch_size=None, compute=pool, num_cpus=needs.cpus, num_gpus=needs.gpus
        )
        for row in done.iter_rows():
            if row["refusal"]:
                raise SetupError(row["refusal"])
            yield Done(row["rows"], row["tokens"], row["cut"])
    except ray.exceptions.RayError as exc:
        raise SetupError(f"--ray {address}: {one_line(exc, 300)}") from exc
    finally:
        ray.shutdown()


class _Actor:
    """A worker whose parts and results are columns. Its errors are returned as data: Ray would wrap an exception in
    pages of text."""

    def __init__(self, job: Job):
        os.environ["RAYON_NUM_THREADS"] = str(
            job.settings.threads
        )  # threads of the tokenizer, which would else use every processor
        take_long_fields()
        self._worker: Worker | None = None
        self._refusal = ""
        try:
            self._worker = Worker(job)
        except SetupError as exc:
            self._refusal = exc.message

    def __call__(self, parts: dict[str, Any]) -> dict[str, list[Any]]:
        done: list[Done] = []
        refusal = self._refusal
        if self._worker is not None:
            (index,) = parts["index"]
            try:
                self._worker.embed(int(index), done.append)
            except SetupError as exc:
                refusal = exc.message
        row_count, tokens = sum(one.row_count for one in done), sum(one.tokens for one in done)
        cut = sum(one.cut for one in done)
        return {"rows": [row_count], "tokens": [tokens], "cut": [cut], "refusal": [refusal]}


def _connect(address: str) -> None:
    _refuse_silence(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry, if this process starts the cluster
    logging.getLogger("ray.data").setLevel("ERROR")
    try:
        with chdir(processes.HOME):  # Ray's workers import from the driver's paths
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as exc:
        reason = one_line(exc)
        raise SetupError(f"--ray {address}: {reason}; where it asks for a token, set its RAY_AUTH_TOKEN") from None


def _refuse_silence(address: str) -> None:
    """Raises SetupError if nobody listens at the address; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as exc:
        raise SetupError(f"--ray {address}: {why(exc)}; is it the address of a cluster's head?") from None


@dataclass(frozen=True)
class _Needs:
    """The resources of one actor."""

    cpus: int
    gpus: int | None = None


def _resources(threads: int | None) -> tuple[_Needs, int]:
    """The resources of one actor, and the number of actors that fit the cluster: one per GPU, with its share of the
    processors; else one per `threads` processors, or one per node."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        share = min(int(node.get("CPU", 1) // node["GPU"]) for node in nodes if node.get("GPU"))
        return _Needs(threads or max(1, share), 1), gpus
    processors = [int(node["CPU"]) for node in nodes if node.get("CPU")]
    if not processors:
        raise SetupError("--ray: the cluster has neither GPUs nor processors")
    threads = threads or min(processors)
    return _Needs(threads), max(1, sum(count // threads for count in processors))
