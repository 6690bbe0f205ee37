"""`text-embeddings-router`: our server with the flags, variables and defaults of TEI's."""

import ipaddress
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bei import __version__, processes
from bei.engines.interpreters import Interpreters
from bei.errors import SetupError, one_line
from bei.metrics import Metrics, port
from bei.options import Function, in_help, joined, one_line_errors
from bei.settings import ServerSettings, Settings, several
from bei.settings.config import raw_block
from bei.settings.reference import settings_of
from bei.settings.several import Deployment

log = logging.getLogger("bei")

_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_POOLING = {"cls": "first", "mean": "mean", "last-token": "last", "splade": "splade"}
_CONFIGS = (Path("config.yaml"), Path("/app/config.yaml"))
_METRICS_PORT = 9000
_DENSE = "2_Dense"
_LEVELS = {"trace": "debug", "warn": "warning", "off": "critical"}
_LEVELS |= {level: level for level in ("debug", "info", "warning", "error", "critical")}
"""Words of LOG_LEVEL, and Python's for each."""


@dataclass(frozen=True)
class Flag:
    """A flag of TEI's for one of our settings."""

    name: str
    setting: str
    default: str | None = None
    """TEI's default; None where TEI has none, or where it is ours."""
    words: Mapping[str, str] = field(default_factory=dict)
    """TEI's word for each of our values."""
    options: Mapping[str, Any] = field(default_factory=dict)


def _address(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Docker sets HOSTNAME to the name of the container; TEI then listens on every address, and so do we."""
    assert parameter.name is not None
    if value is None or context.get_parameter_source(parameter.name) is not ParameterSource.ENVIRONMENT:
        return value
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return None


FLAGS = (
    Flag("revision", "revision"),
    Flag("hostname", "host", "0.0.0.0", options={"callback": _address}),
    Flag("port", "port", "3000"),
    Flag("dtype", "precision", words=_DTYPES),
    Flag("pooling", "pooling", words=_POOLING),
    Flag("served-model-name", "served_model_name"),
    Flag("max-concurrent-requests", "max_concurrent_requests", "512"),
    Flag("max-batch-tokens", "max_num_tokens", "16384"),
    Flag("max-batch-requests", "max_batch_size"),
    Flag("max-client-batch-size", "max_client_batch_size", "32"),
    Flag("auto-truncate", "auto_truncate", "true", options={"is_flag": False, "flag_value": "true"}),
    Flag("default-prompt-name", "default_prompt_name"),
    Flag("default-prompt", "default_prompt"),
    Flag("tokenization-workers", "tokenization_workers"),
    Flag("payload-limit", "payload_limit", "2000000"),
    Flag("api-key", "api_key"),
    Flag("allowed-host", "allowed_host", options={"multiple": True, "callback": joined}),
    Flag("huggingface-hub-cache", "hub_cache"),
    Flag("json-output", "json_output", options={"is_flag": True}),
    Flag("otlp-endpoint", "otlp_endpoint"),
    Flag("otlp-service-name", "otlp_service_name", "text-embeddings-inference.server"),
    Flag("cors-allow-origin", "cors_allow_origin", "*", options={"multiple": True, "callback": joined}),
)
OTHER_FLAGS = {
    "model-id": "A folder, or a Hugging Face repository. Unset: the one that config.yaml names. Repeatable.",
    "hf-token": "The token for private and gated repositories.",
    "hf-api-token": "The older name of --hf-token.",
    "dense-path": f"{_DENSE} only: modules.json says which Dense module follows.",
    "prometheus-port": f"The port that serves /metrics, too. 0: none. Unset: {_METRICS_PORT}.",
}
"""Flags of TEI's that are no setting of ours, with their help."""
WITHOUT_EFFECT = {
    "uds-path": "our connection to the engine has no name; set BEI_UDS_PATH to listen on a socket",
    "disable-spans": "log lines have no spans",
}
"""Flags of TEI's without effect here, with the reason."""
UNASKED = {"rerank_order": "score"}
"""Settings for behavior of TEI's that has no flag there."""
_SETTINGS = {setting.name: setting for setting in settings_of(Settings)}


class _Names(click.types.StringParamType):
    """Several names in a variable have commas between them."""

    envvar_list_splitter = ","


def _option(*names: str, help: str, **options: Any) -> Callable[[Function], Function]:
    """An option of TEI's, with the environment variable that TEI gives it."""
    return click.option(*names, envvar=names[0][2:].upper().replace("-", "_"), help=help, **options)


def _of_setting(flag: Flag) -> Callable[[Function], Function]:
    options: dict[str, Any] = {"default": None, "metavar": _SETTINGS[flag.setting].values, **flag.options}
    if options.get("is_flag"):
        del options["metavar"]
    if flag.words:
        words = dict(flag.words)
        options |= {"type": click.Choice(list(words)), "metavar": "|".join(words)}
        options["callback"] = lambda context, parameter, value: words.get(value)
    names = [f"--{flag.name}", flag.setting, *(["-p"] if flag.name == "port" else [])]
    return _option(*names, help=_help(flag), **options)


def _help(flag: Flag) -> str:
    ours = _SETTINGS[flag.setting]
    unasked = None if flag.words else ours.default
    return in_help(f"{ours.help}{' Repeatable.' * ('multiple' in flag.options)}", flag.default or unasked)


def _of_settings(function: Function) -> Function:
    for flag in reversed(FLAGS):
        function = _of_setting(flag)(function)
    return function


def _other(name: str, **options: Any) -> Callable[[Function], Function]:
    help = OTHER_FLAGS.get(name) or f"Without effect: {WITHOUT_EFFECT[name]}."
    return _option(f"--{name}", help=help, **options)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(
    __version__, "-V", "--version", prog_name="text-embeddings-router", message="%(prog)s %(version)s"
)
@_other("model-id", type=_Names(), multiple=True)
@_of_settings
@_other("hf-token")
@_other("hf-api-token")
@_other("dense-path")
@_other("prometheus-port", type=int)
@_other("uds-path")
@_other("disable-spans", is_flag=True)
def text_embeddings_router(
    model_id: Sequence[str],
    hf_token: str | None,
    hf_api_token: str | None,
    prometheus_port: int | None,
    dense_path: str | None,
    uds_path: str | None,
    disable_spans: bool,
    **flags: Any,
) -> None:
    """The server of `bei serve` under the name and flags of text-embeddings-router, with TEI's defaults.

    Without --model-id it serves the models of BEI_CONFIG, ./config.yaml or /app/config.yaml, so the start command that
    truss generates for an encoder runs this program. BEI_* variables override TEI's defaults, and flags override both.
    """

    def run() -> None:
        processes.keep_libraries_isolated()
        token = _token(hf_token, hf_api_token)
        environ = {**_defaults(), **os.environ, **({"HF_TOKEN": token} if token else {})}

        def read() -> Sequence[Settings]:
            return several.for_all(_deployments(model_id), environ=environ, **flags)

        models = read()
        _check_dense(dense_path)
        with Interpreters.ahead_of(models) as interpreters:
            from bei import launch  # its imports run beside those of the interpreters
            from bei.server import hosting

            level, others = _level(os.environ.get("LOG_LEVEL", ""))
            hosting.start_logs(models[0], level)
            _tell_without_effect({"uds-path": uds_path, "disable-spans": disable_spans})
            if others:
                log.warning("LOG_LEVEL: %s has no effect here; the level is %s", one_line(others), level)
            launch.serve(models, read, interpreters, lambda metrics: _show_metrics(metrics, models[0], prometheus_port))

    one_line_errors(run)


def _defaults() -> dict[str, str]:
    """TEI's defaults as BEI_* variables; variables of the environment override them."""
    ours = UNASKED | {flag.setting: flag.default for flag in FLAGS if flag.default is not None}
    return {_SETTINGS[name].variable: value for name, value in ours.items()}


def _level(asked: str) -> tuple[str, str]:
    """The level that a filter of TEI's sets for everything, such as `info,hyper=debug`, and its other directives."""
    directives = [one.strip() for one in asked.split(",") if one.strip()]
    levels = [_LEVELS[one.lower()] for one in directives if one.lower() in _LEVELS]
    return levels[-1] if levels else "info", ",".join(one for one in directives if one.lower() not in _LEVELS)


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


def _tell_without_effect(given: Mapping[str, Any]) -> None:
    for name in filter(given.get, given):
        log.warning("--%s is without effect here: %s", name, WITHOUT_EFFECT[name])


def _show_metrics(metrics: Metrics, settings: ServerSettings, asked: int | None) -> None:
    """Serves the metrics on the requested port. Without a request it uses TEI's, if that is free and no key is
    needed."""
    if asked == 0 or (asked is None and settings.protect_all):
        return
    try:
        port.listen(metrics, settings.host, _METRICS_PORT if asked is None else asked)
    except SetupError as exc:
        if asked is not None:
            raise
        log.warning("%s; /metrics is on the server's own port, too", exc)


def _deployments(model_ids: Sequence[str]) -> list[Deployment]:
    """One for each --model-id, or those of the configs, as for `bei serve`."""
    configs = several.default_configs() if "BEI_CONFIG" in os.environ else [p for p in _CONFIGS if p.exists()][:1]
    if model_ids:
        return [_of_model(model_id, configs) for model_id in model_ids]
    if not configs:
        raise SetupError("neither --model-id nor a config.yaml says what to serve")
    return several.deployments_of(configs)


def _of_model(model_id: str, configs: Sequence[Path]) -> Deployment:
    """The bundle's config.yaml where there is one, with this model in the place of its own; else a bare block."""
    if not configs:
        return several.of_model(model_id)
    found = several.only(configs)
    block = raw_block(found.config) or {}
    (block.get("runtime") or {}).pop("webserver_default_route", None)  # it is that of the config's own model
    return replace(found, name=model_id, flags=several.repository_of(model_id))
