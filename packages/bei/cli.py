"""The command line: `bei serve | embed | info | build`, and `text-embeddings-router` for those who start TEI's."""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from bei import __version__, logs, metrics, processes
from bei.checkpoint.load import Checkpoint
from bei.errors import SetupError, address
from bei.server import listen, workers
from bei.service import Service
from bei.settings import Settings, read_config

log = logging.getLogger("bei")

_TEI_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_TEI_POOLING = {"cls": "first", "mean": "mean", "last-token": "last", "splade": "splade"}
_CONFIGS = (Path("config.yaml"), Path("/app/config.yaml"))


class _Program(click.Group):
    """Turns a SetupError into one line on stderr and exit status 2."""

    def invoke(self, context: click.Context) -> Any:
        processes.keep_libraries_isolated()
        return _one_line_errors(lambda: super(_Program, self).invoke(context))


def _one_line_errors(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except SetupError as exc:
        click.echo(f"bei: {exc}", err=True)
        sys.exit(2)


def _options(*options: Callable) -> Callable[[Callable], Callable]:
    def decorate(command: Callable) -> Callable:
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
    click.option(
        "--cache-dir", type=click.Path(path_type=Path), help="Downloads and built engines.  [default: ~/.cache/bei]"
    ),
    click.option("--log-level", default="info", show_default=True, help="debug, info, warning or error."),
)
_SERVER = _options(
    click.option("--host", help="Address to listen on.  [default: 127.0.0.1]"),
    click.option("--port", type=int, help="Port; 0 takes a free one.  [default: 8080]"),
    click.option("--workers", type=int, help="Processes that read, tokenize and answer.  [default: 1]"),
    click.option("--api-key", help="Ask for this key, or one of several between commas; better as BEI_API_KEY."),
    click.option("--api-key-file", type=click.Path(path_type=Path), help="A file of keys, one a line."),
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
        "--max-engine-restarts", type=int, help="Deaths of the engine in a row, then it stays down.  [default: 5]"
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
    workers.observe(settings, log_level)
    _serve(settings)


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
    click.echo(f"{service.settings.public_repo}: {service.checkpoint.folder}, runs on {_engine(service)}")


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
        from bei.bulk import run
    except ModuleNotFoundError as exc:
        raise SetupError(f"{exc.name} is not installed: pip install 'bei[{'ray' if ray else 'bulk'}]'") from None
    if workers and not ray:
        raise SetupError("--workers is for --ray; on this machine use --threads")
    settings = Settings.from_file(config, **flags)
    rows = run.embed(
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
    click.echo(f"{output}: {rows} rows")


def _serve(settings: Settings) -> None:
    listen.tls(settings.tls_cert, settings.tls_key)  # refused before anything is loaded
    listener = listen.bind(settings.host, settings.port)
    service = Service(settings, isolated=True)

    def announce() -> None:
        host, port = listener.getsockname()[:2]
        if settings.json_output:
            log.info("%s is served on %s", settings.served_model_name, _url(settings, host, port))
        else:
            click.echo(_banner(service, _url(settings, host, port)))

    sys.exit(workers.serve(service, listener, announce))


def _facts(service: Service) -> dict[str, Any]:
    checkpoint, engine = service.checkpoint, service.engine
    model = {
        "name": checkpoint.name,
        "folder": str(checkpoint.folder),
        "revision": checkpoint.revision,
        "stored_as": checkpoint.dtype,
        "task": checkpoint.task,
        "default_route": service.route,
        **_outputs(checkpoint),
        "max_tokens": checkpoint.max_tokens,
        "prompts": dict(checkpoint.prompts.texts),
    }
    chosen = {"name": engine.name, "device": engine.device, "precision": engine.precision, "reason": engine.reason}
    return {"model": model, "engine": chosen, "settings": service.settings.model_dump(mode="json")}


def _outputs(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the model answers with, for people."""
    match checkpoint.task:
        case "reranker" | "classifier" | "entities":
            return {"labels": list(checkpoint.labels), "scores": checkpoint.scoring}
        case "multi_vector":
            return {"dimensions": checkpoint.spec.token_size}
        case _:
            dimensions = checkpoint.dimensions or checkpoint.spec.row_size
            return {"pooling": list(checkpoint.spec.pooling.modes), "dimensions": dimensions}


def _engine(service: Service) -> str:
    engine = service.engine
    return f"{engine.name}, {engine.precision} on {engine.device} ({engine.reason})"


_SHOWN = 6
_TRY: dict[str, tuple[str, str]] = {
    "embedding": ("/v1/embeddings", '{"input": "What is Deep Learning?", "dimensions": 4}'),
    "reranker": ("/rerank", '{"query": "What is Deep Learning?", "texts": ["Deep Learning is...", "Berlin is..."]}'),
    "classifier": ("/predict", '{"inputs": "Profits rose by a fifth."}'),
    "entities": ("/predict_tokens", '{"inputs": ["My name is Maria Schmidt."], "aggregation_strategy": "simple"}'),
    "sparse": ("/embed_sparse", '{"inputs": "What is Deep Learning?"}'),
    "multi_vector": (
        "/rerank",
        '{"query": "What is Deep Learning?", "texts": ["Deep Learning is...", "Berlin is..."]}',
    ),
}


def _url(settings: Settings, host: str, port: int) -> str:
    return f"{'https' if settings.tls_cert else 'http'}://{address(host, port)}"


def _banner(service: Service, url: str) -> str:
    settings, checkpoint = service.settings, service.checkpoint
    key = ' -H "Authorization: Bearer $KEY"' if settings.api_key else ""
    path, body = _TRY[checkpoint.task]
    return f"""
  {settings.served_model_name}
    engine    {_engine(service)}
    task      {checkpoint.task}: {_in_words(checkpoint)}
    limits    {checkpoint.max_tokens} tokens a text, {settings.max_client_batch_size} texts a request
    listening {url} (routes: {url}/docs)

  Try it:
    curl -s{key} {url.removeprefix("http://")}{path} -d '{body}'
"""


def _in_words(checkpoint: Checkpoint) -> str:
    outputs = _outputs(checkpoint)
    if "labels" in outputs:
        more = f" and {len(outputs['labels']) - _SHOWN} more" if len(outputs["labels"]) > _SHOWN else ""
        return f"{outputs['scores']} of {', '.join(outputs['labels'][:_SHOWN])}{more}"
    pooling = f", {'+'.join(outputs['pooling'])} pooling" if "pooling" in outputs else " a token"
    return f"{outputs['dimensions']} numbers{pooling}"


def _tei_option(name: str, **options: Any) -> Callable:
    """An option of TEI's, and the environment variable that TEI gives it."""
    return click.option(f"--{name}", envvar=name.upper().replace("-", "_"), show_default=True, **options)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@_tei_option("model-id", help="A folder, or a Hugging Face repository; else what config.yaml names.")
@_tei_option("revision", help="Branch, tag or commit of the repository.")
@_tei_option("hostname", default="0.0.0.0")
@_tei_option("port", type=int, default=3000)
@_tei_option("dtype", type=click.Choice(list(_TEI_DTYPES)), help="Precision to compute in.")
@_tei_option("pooling", type=click.Choice(list(_TEI_POOLING)), help="Where the checkpoint does not say.")
@_tei_option("served-model-name", help="The name that answers carry.")
@_tei_option("max-concurrent-requests", type=int, default=512)
@_tei_option("max-batch-tokens", type=int, default=16384)
@_tei_option("max-batch-requests", type=int)
@_tei_option("max-client-batch-size", type=int, default=32)
@_tei_option("auto-truncate", type=bool, is_flag=False, flag_value="true", default=True)
@_tei_option("default-prompt-name", help="The model's prompt to use unasked.")
@_tei_option("default-prompt", help="Text put before each input.")
@_tei_option("tokenization-workers", type=int)
@_tei_option("payload-limit", type=int, default=2_000_000)
@_tei_option("api-key", help="Ask for this key.")
@_tei_option("hf-token", help="For private and gated repositories.")
@_tei_option("json-output", is_flag=True, help="Log lines as JSON.")
@_tei_option("otlp-endpoint", help="Send traces to this OpenTelemetry collector, as http://localhost:4317.")
@_tei_option("otlp-service-name", default="text-embeddings-inference.server", help="The name of this server in traces.")
@_tei_option("prometheus-port", type=int, help="Serve /metrics there, too.")
def text_embeddings_router(
    model_id: str | None,
    revision: str | None,
    hostname: str,
    dtype: str | None,
    pooling: str | None,
    max_batch_tokens: int,
    max_batch_requests: int | None,
    hf_token: str | None,
    prometheus_port: int | None,
    **flags: Any,
) -> None:
    """The server of `bei serve` under the name and flags of text-embeddings-router, with TEI's defaults.

    Without --model-id it serves what BEI_CONFIG, ./config.yaml or /app/config.yaml names, so the start command that
    truss generates for an encoder runs this program.
    """
    flags |= {
        "host": hostname,
        "precision": _TEI_DTYPES.get(dtype),
        "pooling": _TEI_POOLING.get(pooling),
        "max_num_tokens": max_batch_tokens,
        "max_batch_size": max_batch_requests,
        **_repository(model_id, revision),
    }

    def run() -> None:
        processes.keep_libraries_isolated()
        environ = {**os.environ, **({"HF_TOKEN": hf_token} if hf_token else {})}
        settings = Settings.load(_config(model_id), environ=environ, **flags)
        workers.observe(settings, os.environ.get("LOG_LEVEL", "info"))
        if prometheus_port:
            metrics.listen(hostname, prometheus_port)
        _serve(settings)

    _one_line_errors(run)


def _repository(model_id: str | None, revision: str | None) -> dict[str, str | None]:
    if model_id is None:
        return {"revision": revision}
    local = model_id.startswith(("/", ".", "~")) or Path(model_id).is_dir()
    return {"source": "LOCAL" if local else "HF", "repo": model_id, "revision": revision}


def _config(model_id: str | None) -> Mapping[str, Any]:
    """The bundle's config.yaml where there is one; a bare block for --model-id without it."""
    places = [Path(os.environ["BEI_CONFIG"])] if "BEI_CONFIG" in os.environ else [p for p in _CONFIGS if p.exists()]
    if places:
        config = read_config(places[0])
        if model_id is not None:  # the default route is of the config's model, not of this one
            block = config.get("trt_llm") or {}
            (block.get("runtime") or {}).pop("webserver_default_route", None)
        return config
    if model_id is None:
        raise SetupError("neither --model-id nor a config.yaml says what to serve")
    repository = {"source": "LOCAL", "repo": model_id}
    return {"trt_llm": {"build": {"base_model": "encoder_bert", "checkpoint_repository": repository}}}


if __name__ == "__main__":
    main()
