"""Every key of truss's own v1 `trt_llm` schema is obeyed, refused by name, or logged as without effect."""

import copy
import json
from typing import Any

import pytest

from bei.errors import SetupError
from bei.settings import Settings
from bei.settings.block import REFUSED, VersionOverrides
from bei.settings.keys import OBEYED, SECRET_NAME, WITHOUT_EFFECT
from tests.support.truss_bundles import REPOSITORY, with_value

WALK = """
import json
from typing import get_args
from pydantic import AliasChoices, BaseModel
from truss.base import trt_llm_config as schema

def models(kind):
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for inner in get_args(kind):
        yield from models(inner)

def names(name, field):
    alias = field.validation_alias or field.alias
    return [*alias.choices] if isinstance(alias, AliasChoices) else [alias or name]

def keys(model, path=()):
    for field_name, field in model.model_fields.items():
        for name in names(field_name, field):
            inner = list(models(field.annotation))
            if not inner or name in ("lora_adapters", "speculator"):  # refused whole
                yield ".".join((*path, name))
            for each in inner if name not in ("lora_adapters", "speculator") else ():
                yield from keys(each, (*path, name))

"""
OF_TODAY = """
print(json.dumps(list(keys(schema.TRTLLMConfigurationV1))))
"""
OF_TOMORROW = """
from typing import Optional, Union
from pydantic import Field, create_model

plugins = create_model("P", __base__=schema.TrussTRTLLMPluginConfiguration, deep_key=(int, 0))
other = create_model("O", other_key=(int, 0))
kinds = Optional[Union[plugins, other]]
renamed = (int, Field(0, validation_alias=AliasChoices("a_name", "another_name")))
build = create_model(
    "B", __base__=schema.TrussTRTLLMBuildConfiguration, plugin_configuration=(kinds, None), renamed=renamed
)
tomorrow = create_model("T", __base__=schema.TRTLLMConfigurationV1, build=(build, ...), new_key=(Optional[str], None))
print(json.dumps(list(keys(tomorrow))))
"""
VALUES: dict[str, Any] = {
    "build.base_model": "encoder",
    "build.quantization_type": "fp8",
    "build.quantization_config.calib_size": 64,
    "build.quantization_config.calib_dataset": "a/b",
    "build.quantization_config.calib_max_seq_length": 64,
    "build.checkpoint_repository.source": "LOCAL",
    "build.checkpoint_repository.repo": "another/one",
    "build.checkpoint_repository.revision": "abc",
    "build.checkpoint_repository.runtime_secret_name": "mine",
    "build.max_num_tokens": 128,
    "build.max_beam_width": 1,
    "build.moe_expert_parallel_option": 1,
    "build.speculator": {"speculative_decoding_mode": "LOOKAHEAD_DECODING"},
    "build.lora_adapters": {"a": REPOSITORY},
    "build.lora_configuration.lora_target_modules": ["q"],
    "build.plugin_configuration.paged_kv_cache": True,
    "build.plugin_configuration.use_paged_context_fmha": False,
    "runtime.batch_scheduler_policy": "max_utilization",
    "runtime.served_model_name": "m",
    "runtime.webserver_default_route": "/rerank",
    "runtime.kv_cache_free_gpu_mem_fraction": 0.5,
    "runtime.lora_cache_gpu_memory_fraction": 0.5,
    "inference_stack": "v2",
    **dict.fromkeys(("build.gather_all_token_logits", "build.strongly_typed", "build.skip_build_result"), True),
    "build.plugin_configuration.use_fp8_context_fmha": True,
    "runtime.enable_chunked_context": False,
    **{f"version_overrides.{name}": "1.2" for name in VersionOverrides.model_fields},
}
"""A value that is not its default; 8 for every other key."""


@pytest.fixture(scope="module")
def keys(in_truss) -> list[str]:
    return json.loads(in_truss(WALK + OF_TODAY))


def facts(config: dict[str, Any]) -> dict[str, Any]:
    environ = {"TRUSS_SECRET_mine": "s1", "TRUSS_SECRET_hf_access_token": "s2"}
    settings = Settings.load(config, environ=environ)
    return {**settings.model_dump(exclude={"without_effect"}), "credential": settings.credential.get_secret_value()}


KNOWN = [*OBEYED, SECRET_NAME, *REFUSED, *WITHOUT_EFFECT]


def test_every_key_of_truss_is_in_one_table(keys):
    assert sorted(keys) == sorted(KNOWN)


def test_a_key_that_truss_gets_is_noticed(in_truss):
    found = json.loads(in_truss(WALK + OF_TOMORROW))
    new = {"plugin_configuration.deep_key", "plugin_configuration.other_key", "a_name", "another_name"}
    assert set(found) - set(KNOWN) == {f"build.{key}" for key in new} | {"new_key"}


def test_no_key_of_truss_is_dropped(keys):
    assert len(keys) > 45
    base = with_value("build.strongly_typed", False)
    baseline, dropped = facts({"trt_llm": copy.deepcopy(base)}), []
    for key in keys:
        config = {"trt_llm": with_value(key, VALUES.get(key, 8)), "resources": {"accelerator": "H100"}}
        try:
            told = Settings.load(copy.deepcopy(config), environ={}).without_effect
            if facts(config) == baseline and key not in told:
                dropped.append(key)
        except SetupError as refusal:
            assert key.rpartition(".")[2] in str(refusal), key
    assert dropped == []


def test_what_is_told_of_is_truss_s_and_nothing_else(keys):
    assert set(WITHOUT_EFFECT) <= set(keys)
    assert Settings.load({"trt_llm": with_value("build.num_builder_gpus", None)}, environ={}).without_effect == ()
