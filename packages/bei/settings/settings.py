"""The settings of a server: config.yaml's `trt_llm` block and its BEI_* variables, then those of the environment, then
flags; checked, then frozen."""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr, ValidationError

from bei.errors import SetupError
from bei.settings.block import TRTLLM, QuantizationType
from bei.settings.config import in_one_line, raw_block, read_block, read_config, variables_of
from bei.settings.devices import contradiction
from bei.settings.groups import LifeSettings, LimitSettings, ModelSettings, ObservationSettings, ServerSettings
from bei.settings.keys import OBEYED, leaves, without_effect
from bei.settings.reference import settings_of
from bei.settings.secrets import keys_of, without_secrets

_OTHER_VARIABLES = ("BEI_CONFIG",)  # read by the command line, before there are settings


class Settings(ObservationSettings, LimitSettings, ServerSettings, LifeSettings, ModelSettings):
    """All groups. `api_key` contains every accepted key: those of the environment, of flags and of `api_key_file`.

    `without_effect` names the keys of the block that have no effect here.
    """

    without_effect: tuple[str, ...] = ()

    @classmethod
    def load(
        cls,
        config: Mapping[str, Any],
        *,
        secrets: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        **flags: Any,
    ) -> Self:
        """Settings for the content of a config.yaml; flags that are None or () count as unset. Raises SetupError."""
        environ = {**variables_of(config), **(os.environ if environ is None else environ)}
        block = read_block(config)
        ways = cls._from_environment(environ), {k: v for k, v in flags.items() if v not in (None, ())}
        values = _from_block(block) | ways[0] | ways[1]
        name = block.repository.runtime_secret_name
        values["served_model_name"] = values.get("served_model_name") or without_secrets(str(values["repo"]))
        values["without_effect"] = without_effect(raw_block(config))
        values["credential"] = _credential(name, secrets or {}, environ)
        values["api_key"] = keys_of(*ways)
        try:
            settings = cls(**values)
        except ValidationError as exc:
            raise SetupError(in_one_line(exc, "setting ")) from None
        _refuse_unservable(settings)
        return settings

    @classmethod
    def from_file(cls, path: Path, **flags: Any) -> Self:
        """Settings for a config.yaml on disk. Raises SetupError."""
        return cls.load(read_config(path), **flags)

    def redacted(self) -> Self:
        """The settings without secrets."""
        return self.model_copy(update={"credential": None, "api_key": ()})

    @classmethod
    def _from_environment(cls, environ: Mapping[str, str]) -> dict[str, str]:
        known = {setting.variable: setting.name for setting in settings_of(cls)}
        ours = {key: value for key, value in environ.items() if key.startswith("BEI_") and key not in _OTHER_VARIABLES}
        unknown = sorted(ours.keys() - known.keys())
        if unknown:
            close = get_close_matches(unknown[0].removeprefix("BEI_"), [name.upper() for name in known.values()], 1)
            remedy = f"did you mean BEI_{close[0]}?" if close else "`bei serve --help` lists them"
            raise SetupError(f"environment variable {unknown[0]} is not a setting; {remedy}")
        return {known[key]: value for key, value in ours.items()}


def _from_block(block: TRTLLM) -> dict[str, Any]:
    """Setting → value, where the block has one."""
    values = dict(leaves(block.model_dump(mode="json")))
    return {setting: values[key] for key, setting in OBEYED.items() if values[key] is not None}


def _credential(name: str, secrets: Mapping[str, str], environ: Mapping[str, str]) -> SecretStr | None:
    """The secret that `runtime_secret_name` names: Truss's, else TRUSS_SECRET_<name>, else HF_TOKEN."""
    value = secrets[name] if name in secrets else environ.get(f"TRUSS_SECRET_{name}") or environ.get("HF_TOKEN")
    return SecretStr(value) if value else None


def _refuse_unservable(settings: Settings) -> None:
    if settings.default_prompt is not None and settings.default_prompt_name is not None:
        raise SetupError("settings default_prompt and default_prompt_name: set one of them")
    if settings.devices is not None:
        fault = contradiction(settings.devices, settings.engine, settings.threads)
        if fault is not None:
            raise SetupError(fault)
    if settings.quantization is not QuantizationType.NO_QUANT and settings.base_model == "encoder_bert":
        raise SetupError(
            "trt_llm.build.quantization_type: `encoder_bert` is served in 16 bits; set no_quant, "
            f"not {settings.quantization}"
        )
