"""The settings of several models that one server serves: a config.yaml for each, or one that lists their blocks."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bei.errors import SetupError, short
from bei.files import expanded
from bei.settings.config import listed_models, read_config, variables_of
from bei.settings.groups import LimitSettings, ModelSettings, ObservationSettings, ServerSettings
from bei.settings.reference import settings_of
from bei.settings.settings import Settings

OF_ALL_MODELS = frozenset(
    (
        *("hub_cache", "cache_dir", "max_download_bytes", "allow_private_urls", "training_dir"),
        *("base_model", "quantization", "calib_dataset", "calib_size", "calib_max_seq_length"),
        *("engine", "precision", "threads", "devices", "tokenization_workers"),
        *("max_num_tokens", "max_seq_len", "max_batch_size", "auto_truncate", "rerank_order"),
    )
)
"""Settings of a model that one flag or variable may set for all models. The others are about one model."""
_PATHS = ("/", ".", "~")
_OF_THE_BUNDLE = ("resources", "secrets")
_OF_THE_SERVER = settings_of(ServerSettings, LimitSettings, ObservationSettings)


@dataclass(frozen=True)
class Deployment:
    """One model: the content of its config.yaml, the name under which refusals mention it, flags of its own, and the
    variables that it shares with other models of the same file."""

    name: str
    config: Mapping[str, Any]
    flags: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)


def from_files(paths: Sequence[Path], **flags: Any) -> tuple[Settings, ...]:
    """The settings for config.yaml files. Raises SetupError."""
    return for_all(deployments_of(paths), **flags)


def deployments_of(paths: Sequence[Path]) -> list[Deployment]:
    """The models that config.yaml files name. Raises SetupError."""
    return [model for path in paths for model in models_of(str(path), read_config(path))]


def only(paths: Sequence[Path]) -> Deployment:
    """The one model that config.yaml files name. Raises SetupError where there are several."""
    found = deployments_of(paths)
    if len(found) > 1:
        names = ", ".join(model.name for model in found)
        raise SetupError(f"this is about one model, and {len(found)} are listed ({names}); name one of them")
    return found[0]


def named(models: Sequence[str], configs: Sequence[Path], **flags: Any) -> tuple[Settings, ...]:
    """The settings for folders and repositories, or for config.yaml files: one kind of them. Raises SetupError."""
    if models and configs:
        raise SetupError(f"{models[0]} and --config {configs[0]} both say which model; name models, or configs")
    for model in models:
        _refuse_absent(model)
    if models:
        return for_all([of_model(model) for model in models], **flags)
    return from_files(configs or default_configs(), **flags)


def one(model: str | None, config: Path | None, **flags: Any) -> Settings:
    """The settings of a command that is about one model. Raises SetupError, also where a config lists several."""
    if model is None:
        return for_all([only([config] if config else default_configs())], **flags)[0]
    return named([model], [config] if config else [], **flags)[0]


def default_configs() -> list[Path]:
    """BEI_CONFIG is written as PATH is: several files with colons between them."""
    return [Path(part) for part in os.environ.get("BEI_CONFIG", "config.yaml").split(os.pathsep)]


def models_of(name: str, config: Mapping[str, Any]) -> list[Deployment]:
    """The model of a config.yaml's content, or those of its `model_metadata.models`: a list of trt_llm blocks, or of
    mappings with `trt_llm` and `environment_variables`. Raises SetupError."""
    listed = listed_models(config)
    if not listed:
        return [Deployment(name, config)]
    shared, common = variables_of(config), {key: value for key, value in config.items() if key in _OF_THE_BUNDLE}
    return [
        Deployment(f"{name}: models[{i}]", {**common, **(one if "trt_llm" in one else {"trt_llm": one})}, shared=shared)
        for i, one in enumerate(listed)
    ]


def of_model(name: str) -> Deployment:
    """The model of a folder or of a repository of the hub, without a config.yaml. No config says that it is Baseten's
    `encoder_bert`, so every setting is allowed; `bei info` says which kind it is."""
    build = {"base_model": "encoder", "checkpoint_repository": repository_of(name)}
    return Deployment(name, {"trt_llm": {"build": build}})


def repository_of(name: str) -> dict[str, str]:
    """A folder that exists, or looks as a path does, is a folder; other names are repositories."""
    local = name.startswith(_PATHS) or Path(name).is_dir()
    return {"source": "LOCAL" if local else "HF", "repo": name}


def _refuse_absent(name: str) -> None:
    """Raises SetupError for a path of no folder, with the closest one."""
    place = expanded(name)
    if place.is_dir():
        return
    if place.suffix in (".yaml", ".yml"):
        raise SetupError(f"{name} is no model but a config; name it with --config {name}")
    if name.startswith(_PATHS):
        raise SetupError(f"{name} is {'a file' if place.exists() else 'not there'}; {_remedy(place)}")


def _remedy(place: Path) -> str:
    """The closest folder that is there."""
    beside = [one.name for one in place.parent.iterdir() if one.is_dir()] if place.parent.is_dir() else []
    close = get_close_matches(place.name, beside, 1)
    if close:
        return f"did you mean {place.parent / close[0]}?"
    return "name the folder of a model, or a repository of the hub (owner/name)"


def for_all(
    deployments: Sequence[Deployment],
    *,
    environ: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
    **flags: Any,
) -> tuple[Settings, ...]:
    """The settings of each model. Those of the server are the same in all. Raises SetupError where a flag or variable
    does not say which model it is about, or where two configs contradict one another."""
    environ, first = os.environ if environ is None else environ, deployments[0]
    if len(deployments) == 1:
        environ = {**first.shared, **environ}
        return (Settings.load(first.config, environ=environ, secrets=secrets, **flags, **first.flags),)
    given = {name: value for model in deployments for name, value in model.shared.items()} | dict(environ)
    _refuse_unclear(given, flags, len(deployments))
    found = [_of(model, {**model.shared, **environ}, secrets, flags) for model in deployments]
    for model, settings in zip(deployments, found, strict=True):
        _refuse_contradiction(first.name, found[0], model.name, settings)
    return tuple(found)


def _of(
    model: Deployment, environ: Mapping[str, str], secrets: Mapping[str, str] | None, flags: Mapping[str, Any]
) -> Settings:
    try:
        return Settings.load(model.config, environ=environ, secrets=secrets, **flags, **model.flags)
    except SetupError as exc:
        raise SetupError(f"{model.name}: {exc.message}") from None


def _refuse_unclear(environ: Mapping[str, str], flags: Mapping[str, Any], count: int) -> None:
    for setting in settings_of(ModelSettings):
        if setting.name not in OF_ALL_MODELS:
            way = setting.flag if flags.get(setting.name) is not None else setting.variable
            if way == setting.flag or way in environ:
                raise SetupError(
                    f"{way} is about one model, and {count} are served; set it in the config.yaml of that model, as "
                    f"environment_variables: {setting.variable}"
                )


def _refuse_contradiction(first: str, server: Settings, name: str, settings: Settings) -> None:
    for setting in _OF_THE_SERVER:
        theirs, ours = getattr(settings, setting.name), getattr(server, setting.name)
        if theirs != ours:
            values = "" if setting.name == "api_key" else f": {short(theirs)}, not {short(ours)}"
            raise SetupError(f"{name} contradicts {first} in {setting.variable}{values}; it is about the whole server")
