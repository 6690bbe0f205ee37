"""The config.yaml of a model that was named on the command line, for `bei serve --config` and for truss."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from bei.architectures.base_model import base_model
from bei.architectures.families import family
from bei.checkpoint.load import Checkpoint
from bei.checkpoint.modules import read_json
from bei.files import expanded
from bei.serving.routes import default_route
from bei.settings import DefaultRoute, ModelSettings, Settings
from bei.settings.keys import OBEYED
from bei.settings.reference import settings_of

_RESOURCES = {"accelerator": "L4", "cpu": "1", "memory": "10Gi", "use_gpu": True}
_CONCURRENCY = 256
_OF_THE_BLOCK = frozenset(OBEYED.values())


def kind(checkpoint: Checkpoint) -> Literal["encoder", "encoder_bert"]:
    """The `base_model` of a checkpoint; a table of vectors without layers is no language model."""
    if not checkpoint.spec.layers:
        return "encoder_bert"
    return base_model(family(read_json(checkpoint.folder / "config.json")))


def config_of(settings: Settings, checkpoint: Checkpoint, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.yaml that serves the same model; `flags` without a key of `trt_llm` become variables.
    Raises SetupError for settings that no config.yaml may have together."""
    config = {
        "model_name": f"BEI-{settings.public_repo.rstrip('/').rpartition('/')[2]}",
        "python_version": "py311",
        "resources": dict(_RESOURCES),
        "runtime": {"predict_concurrency": _CONCURRENCY},
        "environment_variables": _variables(flags),
        "trt_llm": _block(settings, checkpoint),
    }
    found = {key: value for key, value in config.items() if value}
    Settings.load(found, environ={})
    return found


def _block(settings: Settings, checkpoint: Checkpoint) -> dict[str, Any]:
    build: dict[str, Any] = {
        "base_model": kind(checkpoint),
        "checkpoint_repository": _repository(settings),
        "max_num_tokens": settings.max_num_tokens,
        "max_batch_size": settings.max_batch_size,
        "quantization_type": settings.quantization.value,
    }
    if settings.max_seq_len is not None:
        build["max_seq_len"] = settings.max_seq_len
    runtime: dict[str, Any] = {}
    route = default_route(settings, checkpoint)
    if route in get_args(DefaultRoute):
        runtime["webserver_default_route"] = route
    if settings.served_model_name != settings.public_repo:
        runtime["served_model_name"] = settings.served_model_name
    block = {"inference_stack": "v1", "build": build, "runtime": runtime}
    return {key: value for key, value in block.items() if value}


def _repository(settings: ModelSettings) -> dict[str, str]:
    """A folder by its whole path: a config may be read elsewhere."""
    if settings.source == "LOCAL":
        return {"source": "LOCAL", "repo": str(expanded(settings.repo).absolute())}
    found = {"source": settings.source.value, "repo": settings.public_repo, "revision": settings.revision}
    if settings.source == "HF":
        found["revision"] = settings.revision or "main"
    return {key: value for key, value in found.items() if value is not None}


def _variables(flags: Mapping[str, Any]) -> dict[str, str]:
    names = {one.name: one.variable for one in settings_of(Settings) if one.name not in _OF_THE_BLOCK}
    given = {names[name]: value for name, value in flags.items() if name in names and value not in (None, ())}
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}
