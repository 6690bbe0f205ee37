"""The command line: `bei serve | embed | info | build`, and `text-embeddings-router` for those who start TEI's."""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from bei import __version__, logs, processes
from bei.errors import SetupError, printable
from bei.launch import engine_in_words, one_line_errors, outputs
from bei.launch import serve as serve_until_signal
from bei.router import text_embeddings_router
from bei.server import workers
from bei.serving.service import Service
from bei.settings import Settings

__all__ = ["main", "text_embeddings_router"]


class _Program(click.Group):
    def invoke(self, context: click.Context) -> Any:
        processes.keep_libraries_isolated()
        return one_line_errors(lambda: super(_Program, self).invoke(context))


Command = TypeVar("Command", bound=Callable[..., Any])


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_MODEL = _options(
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        default=lambda: Path(os.environ.get("BEI_CONFIG", "config.yaml")),
        show_default="config.yaml",
        help="The deployment: a Truss config.yaml with a trt_llm block.",
    ),
    click.option(
        "--engine",
        help="auto, tensorrt, native, torch or null; auto takes the fastest that runs here.  [default: auto]",
    ),
    click.option("--precision", help="auto, fp32, bf16, fp16 or int8.  [default: auto]"),
    click.option("--threads", type=int, help="Processors to compute on.  [default: all that the container has]"),
    click.option("--pooling", help="first, last, mean, max, splade, …, where the checkpoint does not say."),
    click.option("--rerank-template", help="qwen3, mxbai, bge_gemma, nemotron or none: how a reranker is asked."),
    click.option("--attention", help="causal or bidirectional, where the checkpoint's own code decides."),
    click.option("--max-num-tokens", type=int, help="Tokens a batch, and so the longest text."),
    click.option("--max-seq-len", type=int, help="Tokens of the longest text, where that is to be less."),
    click.option("--max-batch-size", type=int, help="Texts a batch."),
    click.option("--hub-cache", type=click.Path(path_type=Path), help="The hub's own cache.  [default: HF_HUB_CACHE]"),
    click.option(
        "--cache-dir", type=click.Path(path_type=Path), help="Downloads and built engines.  [default: ~/.cache/bei]"
    ),
    click.option("--log-level", default="info", show_default=True, help="debug, info, warning or error."),
)
_SERVER = _options(
    click.option("--host", help="Address to listen on.  [default: 127.0.0.1]"),
    click.option("--port", type=int, help="Port; 0 takes a free one.  [default: 8080]"),
    click.option("--uds-path", type=click.Path(path_type=Path), help="A Unix socket to listen on, and on no port."),
    click.option(
        "--cors-allow-origin",
        multiple=True,
        callback=lambda context, parameter, value: value or None,
        help="Pages of this origin (https://example.com), or of any (*), may read answers; repeatable.",
    ),
    click.option("--workers", type=int, help="Processes that read, tokenize and answer.  [default: 1]"),
    click.option("--api-key", help="Ask for this key, or one of several between commas; better as BEI_API_KEY."),
    click.option("--api-key-file", type=click.Path(path_type=Path), help="A file of keys, one a line."),
    click.option("--allowed-host", multiple=True, help="A host that requests may name, *.name, or *; repeat it."),
    click.option("--protect-all", is_flag=True, default=None, help="Ask for a key at /health and /metrics, too."),
    click.option("--tls-cert", type=click.Path(path_type=Path), help="Speak TLS: a certificate and its chain, PEM."),
    click.option("--tls-key", type=click.Path(path_type=Path), help="Its key, PEM.  [default: in --tls-cert]"),
    click.option("--served-model-name", help="The name that answers carry.  [default: the repository]"),
    click.option("--auto-truncate/--no-auto-truncate", default=None, help="Cut long texts unasked.  [default: cut]"),
    click.option("--default-prompt", help="Text put before each input."),
    click.option("--default-prompt-name", help="The model's prompt to use unasked."),
    click.option("--rerank-order", help="input, or score for best first as TEI (haystack needs it).  [default: input]"),
    click.option("--max-client-batch-size", type=int, help="Texts a request.  [default: 2048]"),
    click.option("--max-concurrent-requests", type=int, help="Requests at once, then 429.  [default: 2048]"),
    click.option("--max-queue-seconds", type=float, help="Work that may wait, then 429.  [default: 20]"),
    click.option("--payload-limit", type=int, help="Bytes a request, then 413.  [default: 64000000]"),
    click.option("--max-bytes-in-flight", type=int, help="Bytes of all requests, then 429.  [default: 1073741824]"),
    click.option("--max-connections", type=int, help="Connections; more are closed.  [default: 4096]"),
    click.option("--tokenization-workers", type=int, help="Threads that tokenize.  [default: one a processor]"),
    click.option(
        *("--drain-seconds", "--drain-timeout", "drain_seconds"),
        type=float,
        help="Time for calls in flight after SIGTERM.  [default: 30]",
    ),
    click.option(
        "--max-engine-restarts",
        type=int,
        help="Deaths in a row of the engine, or of a worker, then it stays down.  [default: 5]",
    ),
    click.option("--json-output", is_flag=True, default=None, help="Log lines as JSON."),
    click.option("--access-log/--no-access-log", default=None, help="A log line for each request.  [default: none]"),
    click.option("--otlp-endpoint", help="Send traces to this OpenTelemetry collector, as http://localhost:4317."),
    click.option("--otlp-service-name", help="The name of this server in traces.  [default: bei]"),
)


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bei")
def main() -> None:
    """An open embedding engine: serves the model that a Truss config.yaml names.

    Every setting comes from the config's trt_llm block, then from BEI_* environment variables (BEI_PORT=9000), then
    from flags; the last one wins.
    """


@main.command()
@_MODEL
@_SERVER
def serve(config: Path, log_level: str, **flags: Any) -> None:
    """Serve over HTTP, until SIGTERM.

    Routes: OpenAI's, TEI's, Cohere's and vLLM's for embeddings, rerank, classes and entities, as the model is for;
    /health, /metrics; GET /docs lists them all.
    """
    settings = Settings.from_file(config, **flags)
    workers.start_logs(settings, log_level)
    serve_until_signal(settings)


@main.command()
@_MODEL
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(config: Path, log_level: str, as_json: bool, **flags: Any) -> None:
    """Say what would be served, by which engine and why, and every setting."""
    logs.to_stderr("warning" if log_level == "info" else log_level)
    service = Service(Settings.from_file(config, **flags))
    service.load()
    facts = _facts(service)
    service.close()
    click.echo(json.dumps(facts, indent=2) if as_json else yaml.safe_dump(facts, sort_keys=False).rstrip())


@main.command()
@_MODEL
def build(config: Path, log_level: str, **flags: Any) -> None:
    """Fetch and check the checkpoint and build the engine now, so that `serve` starts at once."""
    logs.to_stderr(log_level)
    service = Service(Settings.from_file(config, **flags))
    service.load()
    service.close()
    click.echo(
        printable(f"{service.settings.public_repo}: {service.checkpoint.folder}, runs on {engine_in_words(service)}")
    )


@main.command()
@click.argument("input", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--column", default="text", show_default=True, help="Where the texts are.")
@click.option("--dimensions", type=int, help="Numbers a vector.  [default: as the model says, else all]")
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="Vectors of length 1.")
@click.option("--prompt-name", help="The model's prompt to put before each text.")
@click.option("--part-rows", type=click.IntRange(1), default=4096, show_default=True, help="Rows a file of progress.")
@click.option("--ray", metavar="ADDRESS", help="On a Ray cluster: auto, local, or host:port.")
@click.option("--workers", type=click.IntRange(1), help="Models on the cluster.  [default: one a GPU, or one a node]")
@_MODEL
def embed(
    config: Path,
    log_level: str,
    input: Path,
    output: Path,
    column: str,
    dimensions: int | None,
    normalize: bool,
    prompt_name: str | None,
    part_rows: int,
    ray: str | None,
    workers: int | None,
    **flags: Any,
) -> None:
    """Embed the texts of INPUT, a .parquet, .jsonl, .csv, .tsv or .txt file or a folder of such, into OUTPUT.

    OUTPUT is a .parquet file with the input's columns and `embedding`, an .npy file, or a folder of Parquet files; rows
    keep their order. Whatever ends a run, the same command goes on where it stopped.
    """
    logs.to_stderr(log_level)
    try:
        from bei.bulk import interrupt, run

        if ray:
            importlib.import_module("bei.bulk.cluster")
    except ModuleNotFoundError as exc:
        raise SetupError(f"{exc.name} is not installed: pip install 'bei[{'ray' if ray else 'bulk'}]'") from None
    if workers and not ray:
        raise SetupError("--workers is for --ray; on this machine use --threads")
    settings = Settings.from_file(config, **flags)
    try:
        with interrupt.interruptible():
            row_count = run.embed(
                settings,
                input,
                output,
                column=column,
                dimensions=dimensions,
                normalize=normalize,
                prompt_name=prompt_name,
                part_rows=part_rows,
                ray=ray,
                workers=workers,
            )
    except KeyboardInterrupt:
        click.echo("bei: stopped; the same command goes on with what is left", err=True)
        sys.exit(interrupt.STATUS)
    click.echo(printable(f"{output}: {row_count} rows"))


def _facts(service: Service) -> dict[str, Any]:
    checkpoint, facts = service.checkpoint, service.engine.facts
    model = {
        "name": checkpoint.name,
        "folder": str(checkpoint.folder),
        "revision": checkpoint.revision,
        "stored_as": checkpoint.dtype,
        "task": checkpoint.task,
        "default_route": service.route,
        **outputs(checkpoint),
        "max_tokens": checkpoint.max_tokens,
        "prompts": dict(checkpoint.prompts.texts),
    }
    chosen = {"name": facts.name, "device": facts.device, "precision": facts.precision, "reason": facts.reason}
    return {"model": model, "engine": chosen, "settings": service.settings.model_dump(mode="json")}


if __name__ == "__main__":
    main()
