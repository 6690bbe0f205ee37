"""The command `bei info`."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from bei import bundle, logs, options
from bei.errors import SetupError, one_line
from bei.launch import outputs
from bei.serving.service import Service
from bei.settings import ModelSettings, several, ways
from bei.settings.devices import names_of

_FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)


@click.command(
    cls=options.Command,
    examples=(
        "bei info ./my-model",
        "bei info BAAI/bge-small-en-v1.5 --as-config > config.yaml",
        "bei info --config config.yaml --json",
    ),
)
@options.models
@options.configs
@options.log_level
@options.of_settings(ModelSettings)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each model.")
@click.option("--as-config", is_flag=True, help="Print the config.yaml of the one MODEL, for --config and truss push.")
def info(
    models: Sequence[str], config: Sequence[Path], log_level: str, as_json: bool, as_config: bool, **flags: Any
) -> None:
    """Print the model that would be served, the engine with its memory and the reason for it, and every setting with
    the way that set it: a flag, the environment or the config. MODEL is a folder or a repository of the hub; without
    one the config says it."""
    logs.to_stderr("warning" if log_level == "info" else log_level)
    if as_config:
        click.echo(_as_config(models, config, as_json, flags), nl=False)
        return
    found = []
    deployed = several.named(models, config, **flags)
    asked = [several.of_model(name) for name in models] or several.deployments_of(config or several.default_configs())
    for settings, deployment in zip(deployed, asked, strict=True):
        service = Service(settings)
        service.load()
        facts = {**_facts(service), "set_by": ways.set_by(deployment, flags)}
        if models:  # no config says it
            facts["settings"]["base_model"] = bundle.kind(service.model.checkpoint)
        found.append(facts)
        service.close()
    if as_json:
        click.echo("\n".join(json.dumps(facts, indent=2) for facts in found))
    else:
        click.echo("---\n".join(yaml.safe_dump(facts, sort_keys=False) for facts in found).rstrip())


def _as_config(models: Sequence[str], config: Sequence[Path], as_json: bool, flags: Mapping[str, Any]) -> str:
    """A config.yaml's text. Raises SetupError unless one model is named."""
    if len(models) != 1:
        raise SetupError("--as-config needs one MODEL: bei info MODEL --as-config > config.yaml")
    if as_json:
        raise SetupError("--as-config prints YAML; leave --json out")
    (settings,) = several.named(models, config, **flags)
    made = bundle.config_of(settings, Service(settings).read(), flags)
    of_this_machine = settings.source == "LOCAL"
    note = "# The folder is of this machine: for `truss push` name a repository.\n" if of_this_machine else ""
    return note + yaml.safe_dump(made, sort_keys=False)


def _facts(service: Service) -> dict[str, Any]:
    served = service.model
    checkpoint, facts = served.checkpoint, served.engine.facts
    model = {
        "name": checkpoint.name,
        "folder": str(checkpoint.folder),
        "revision": checkpoint.revision,
        "license": _license(checkpoint.folder),
        "stored_as": checkpoint.dtype,
        "task": checkpoint.task,
        "default_route": served.route,
        **outputs(checkpoint),
        "max_tokens": checkpoint.max_tokens,
        "prompts": dict(checkpoint.prompts.texts),
    }
    chosen = {
        "name": facts.name,
        "device": facts.device,
        "devices": names_of(facts.devices),
        "precision": facts.computes_in,
        "memory_bytes": service.memory(),
        "reason": facts.reason,
    }
    return {"model": model, "engine": chosen, "settings": service.settings.model_dump(mode="json")}


def _license(folder: Path) -> str | None:
    """That of the model card's front matter, where the folder has a card; a download has none."""
    try:
        front = _FRONT_MATTER.match((folder / "README.md").read_text())
        named = (yaml.safe_load(front[1]) or {}).get("license") if front else None
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return None
    return one_line(named) if named else None
