"""`text-embeddings-router`: the server for those who start TEI's, by its flags, its variables and its defaults."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from bei import processes
from bei.errors import SetupError
from bei.launch import one_line_errors, serve
from bei.metrics import Metrics, port
from bei.server import workers
from bei.settings import Settings, read_config

log = logging.getLogger("bei")

_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_POOLING = {"cls": "first", "mean": "mean", "last-token": "last", "splade": "splade"}
_CONFIGS = (Path("config.yaml"), Path("/app/config.yaml"))
_METRICS_PORT = 9000
_DENSE = "2_Dense"
_DEFAULTS = {"rerank_order": "score"}
"""What TEI does unasked and has no flag for."""

_NOTHING = {
    "uds_path": "the engine's line has no name; to listen on a socket set BEI_UDS_PATH",
    "disable_spans": "log lines have no spans",
}
"""Flags without effect, and why."""


Command = TypeVar("Command", bound=Callable[..., Any])


def _option(name: str, *setting: str, **options: Any) -> Callable[[Command], Command]:
    """An option of TEI's, with the environment variable that TEI gives it, for the setting of that or another name."""
    return click.option(f"--{name}", *setting, envvar=name.upper().replace("-", "_"), show_default=True, **options)


def _ours(names: Mapping[str, str]) -> Callable[..., str | None]:
    return lambda context, parameter, value: names.get(value)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@_option("model-id", help="A folder, or a Hugging Face repository; else what config.yaml names.")
@_option("revision", help="Branch, tag or commit of the repository.")
@_option("hostname", "host", default="0.0.0.0")
@_option("port", "-p", type=int, default=3000)
@_option("dtype", "precision", type=click.Choice(list(_DTYPES)), callback=_ours(_DTYPES), help="To compute in.")
@_option(
    *("pooling", "pooling"),
    type=click.Choice(list(_POOLING)),
    callback=_ours(_POOLING),
    help="Where the checkpoint does not say.",
)
@_option("served-model-name", help="The name that answers carry.")
@_option("max-concurrent-requests", type=int, default=512)
@_option("max-batch-tokens", "max_num_tokens", type=int, default=16384)
@_option("max-batch-requests", "max_batch_size", type=int)
@_option("max-client-batch-size", type=int, default=32)
@_option("auto-truncate", type=bool, is_flag=False, flag_value="true", default=True)
@_option("default-prompt-name", help="The model's prompt to use unasked.")
@_option("default-prompt", help="Text put before each input.")
@_option("dense-path", help="Only 2_Dense: modules.json says which Dense module follows.")
@_option("tokenization-workers", type=int)
@_option("payload-limit", type=int, default=2_000_000)
@_option("api-key", help="Ask for this key.")
@_option("allowed-host", multiple=True, help="A host that requests may name, *.name, or *; repeat it.")
@_option("hf-token", help="For private and gated repositories.")
@_option("hf-api-token", help="The older name of --hf-token.")
@_option("huggingface-hub-cache", "hub_cache", type=click.Path(path_type=Path), help="Where downloads lie.")
@_option("json-output", is_flag=True, help="Log lines as JSON.")
@_option("disable-spans", is_flag=True, help="Without effect: log lines have no spans.")
@_option("otlp-endpoint", help="Send traces to this OpenTelemetry collector, as http://localhost:4317.")
@_option("otlp-service-name", default="text-embeddings-inference.server", help="The name of this server in traces.")
@_option("prometheus-port", type=int, default=_METRICS_PORT, help="Serve /metrics there, too; 0 for not.")
@_option("uds-path", help="Without effect: TEI's line to its engine. BEI_UDS_PATH listens on a socket.")
@_option("cors-allow-origin", multiple=True, default=("*",), help="Pages of this origin may read answers; repeatable.")
@click.pass_context
def text_embeddings_router(
    context: click.Context,
    /,
    model_id: str | None,
    revision: str | None,
    hf_token: str | None,
    hf_api_token: str | None,
    prometheus_port: int,
    dense_path: str | None,
    uds_path: str | None,
    disable_spans: bool,
    **flags: Any,
) -> None:
    """The server of `bei serve` under the name and flags of text-embeddings-router, with TEI's defaults.

    Without --model-id it serves what BEI_CONFIG, ./config.yaml or /app/config.yaml names, so the start command that
    truss generates for an encoder runs this program. BEI_* variables go before TEI's defaults, and flags before both.
    """
    unasked = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.DEFAULT}
    defaults = _DEFAULTS | {name: value for name, value in flags.items() if name in unasked and value not in (None, ())}
    flags = {name: value for name, value in flags.items() if name not in unasked} | _repository(model_id, revision)

    def run() -> None:
        processes.keep_libraries_isolated()
        token = _token(hf_token, hf_api_token)
        environ = {**_variables(defaults), **os.environ, **({"HF_TOKEN": token} if token else {})}
        settings = Settings.load(_config(model_id), environ=environ, **flags)
        _check_dense(dense_path)
        workers.start_logs(settings, os.environ.get("LOG_LEVEL", "info"))
        _tell_nothing({"uds_path": uds_path, "disable_spans": disable_spans})
        is_explicit = "prometheus_port" not in unasked

        def show(metrics: Metrics) -> None:
            if prometheus_port and (is_explicit or not settings.protect_all):
                _show_metrics(metrics, settings.host, prometheus_port, is_explicit)

        serve(settings, show)

    one_line_errors(run)


def _variables(defaults: Mapping[str, Any]) -> dict[str, str]:
    """As BEI_* variables, which those of the environment go before."""
    return {
        f"BEI_{name.upper()}": ",".join(value) if isinstance(value, tuple) else str(value)
        for name, value in defaults.items()
    }


def _token(token: str | None, older: str | None) -> str | None:
    if token and older and token != older:
        raise SetupError("--hf-api-token is the older name of --hf-token; set one of them")
    return token or older


def _check_dense(path: str | None) -> None:
    if path not in (None, _DENSE):
        raise SetupError(
            f"--dense-path {path}: the Dense module is the one that modules.json names; write {path} there in place of "
            f"{_DENSE}"
        )


def _tell_nothing(given: Mapping[str, Any]) -> None:
    for name in filter(given.get, given):
        log.warning("--%s is without effect here: %s", name.replace("_", "-"), _NOTHING[name])


def _show_metrics(metrics: Metrics, host: str, number: int, is_explicit: bool) -> None:
    try:
        port.listen(metrics, host, number)
    except SetupError as exc:
        if is_explicit:
            raise
        log.warning("%s; /metrics is on the server's own port, too", exc)


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
