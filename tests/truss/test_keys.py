"""Every key of truss's own v1 `trt_llm` schema: obeyed, refused by name, or told of as without effect."""

import copy
import json
from typing import Any

import pytest

from bei.errors import SetupError
from bei.settings import Settings
from bei.settings.block import VersionOverrides
from bei.settings.keys import WITHOUT_EFFECT
from tests.support.truss_bundles import REPOSITORY, with_value

WALK = """
import json
from typing import get_args
from pydantic import BaseModel
from truss.base import trt_llm_config as schema

def models(kind):
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for inner in get_args(kind):
        if get_args(inner) or isinstance(inner, type):
            yield from models(inner)

def keys(model, path=()):
    for name, field in model.model_fields.items():
        here = (*path, name)
        inner = next(models(field.annotation), None)
        if inner is None or name == "lora_adapters":
            yield ".".join(here)
        elif name != "speculator":
            yield from keys(inner, here)
        else:
            yield ".".join(here)

print(json.dumps(list(keys(schema.TRTLLMConfigurationV1))))
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
    return json.loads(in_truss(WALK))


def facts(config: dict[str, Any]) -> dict[str, Any]:
    environ = {"TRUSS_SECRET_mine": "s1", "TRUSS_SECRET_hf_access_token": "s2"}
    settings = Settings.load(config, environ=environ)
    return {**settings.model_dump(exclude={"without_effect"}), "credential": settings.credential.get_secret_value()}


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
