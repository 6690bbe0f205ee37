"""config.yaml: its `trt_llm` block, read and checked."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bei.errors import SetupError, one_line, short, why
from bei.settings.block import REFUSED, TRTLLM, check_hardware
from bei.settings.keys import unknown_key

_MODELS = "`encoder_bert` (BERT and its relatives, in 16 bits) or `encoder` (language models, in bf16, fp8 or fp4)"
_WORD = 64  # characters
_NEVER_SHOWN = ("api_key", "repo")  # a key is a secret, and an address may hold one


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config.yaml. Raises SetupError."""
    import yaml  # the process of an engine, which imports this module, reads no YAML

    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except IsADirectoryError:
        raise SetupError(f"{path} is a folder, no config; serve a model's folder without the flag: {path}") from None
    except OSError as exc:
        raise SetupError(f"{path}: {why(exc)}; name a model, or another file with --config") from None
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # ValueError: not UTF-8, or no date that exists
        raise SetupError(f"{path} is not YAML: {one_line(exc, 300)}") from None
    if not isinstance(config, dict):
        raise SetupError(f"{path} holds no mapping; a config.yaml has a `trt_llm` block")
    return config


def raw_block(config: Mapping[str, Any]) -> Any:
    """The block at top level, or under `model_metadata` as a pushed model.py has it."""
    return config.get("trt_llm") or _mapping(config, "model_metadata").get("trt_llm")


def read_block(config: Mapping[str, Any]) -> TRTLLM:
    """The block of a config.yaml's content. Raises SetupError for a block that truss refuses, or that we do not
    serve."""
    raw = raw_block(config)
    if raw is None:
        raise SetupError("config.yaml has no `trt_llm` block, neither at top level nor under `model_metadata`")
    try:
        block = TRTLLM.model_validate(raw)
        _refuse_unserved(block)
        check_hardware(block.build, _accelerator(config))
    except ValidationError as exc:
        raise SetupError(in_one_line(exc, "trt_llm.")) from None
    except ValueError as exc:
        raise SetupError(str(exc)) from None
    return block


def listed_models(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """`model_metadata.models`, where a bundle of several models has its blocks; empty without it. Raises SetupError."""
    listed = _mapping(config, "model_metadata").get("models") or []
    if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
        raise SetupError(f"config.yaml: `model_metadata.models` must be a list of trt_llm blocks, not {short(listed)}")
    if listed and raw_block(config) is not None:
        raise SetupError("config.yaml: `trt_llm` and `model_metadata.models` both name models; write one of them")
    return listed


def variables_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The `environment_variables` of a config.yaml, which Truss sets where it runs the bundle. Raises SetupError."""
    found = _mapping(config, "environment_variables")
    for name, value in found.items():
        if not isinstance(value, str):
            raise SetupError(f"config.yaml: `environment_variables.{name}` must be text in quotes, not {short(value)}")
    return dict(found)


def in_one_line(error: ValidationError, prefix: str) -> str:
    """`trt_llm.build.max_num_tokens: Input should be greater than 64, not 64`, and the number of further errors."""
    first, count = error.errors()[0], error.error_count()
    where = prefix + ".".join(str(part) for part in first["loc"]) if first["loc"] else prefix.rstrip(".")
    message = first["msg"].removeprefix("Value error, ")
    secret = any(part in _NEVER_SHOWN for part in first["loc"])
    shown = first["loc"] and not secret and not isinstance(first["input"], dict)
    given = f", not {short(first['input'])}" if shown else ""
    return f"{where}: {message}{given}{_meant(first)}" + (f" (and {count - 1} more)" if count > 1 else "")


def _meant(error: ErrorDetails) -> str:
    """The closest of the values that a setting may have, to a word. (A list in YAML may expand to gigabytes.)"""
    given = error["input"]
    allowed = re.findall("'([^']*)'", error.get("ctx", {}).get("expected", ""))
    close = get_close_matches(given, allowed, 1) if isinstance(given, str) and len(given) <= _WORD else []
    return f"; did you mean {close[0]}?" if close else ""


def _refuse_unserved(block: TRTLLM) -> None:
    """Raises SetupError for a block that truss accepts, at least until it is pushed, and this engine does not serve."""
    unknown, build = unknown_key(block), block.build
    if unknown:
        raise SetupError(unknown)
    if "base_model" not in build.model_fields_set:
        raise SetupError(f"trt_llm.build.base_model is missing: set {_MODELS}")
    if build.base_model == "decoder":
        raise SetupError(f"trt_llm.build.base_model: `decoder` generates text; to embed, set {_MODELS}")
    if build.lora_adapters:
        raise SetupError(f"trt_llm.build.lora_adapters: {REFUSED['build.lora_adapters']}")


def _accelerator(config: Mapping[str, Any]) -> str | None:
    value = _mapping(config, "resources").get("accelerator")
    if value is not None and not isinstance(value, str):
        raise SetupError(f"config.yaml: `resources.accelerator` must be text such as `L4`, not {short(value)}")
    return value


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise SetupError(f"config.yaml: `{key}` must be a mapping, not {short(value)}")
    return value
