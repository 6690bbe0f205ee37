"""The same blocks to truss and to us: the same verdict, and the same values where both accept."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from bei.errors import SetupError
from bei.settings import Settings
from bei.settings.block import TRTLLM, check_hardware
from tests.support.truss_bundles import REPOSITORY, block, with_value

JUDGE = """
import json, logging, sys
from truss.base.truss_config import TrussConfig
logging.disable(logging.CRITICAL)
for line in sys.stdin:
    try:
        config = TrussConfig.model_validate(json.loads(line))
        print(json.dumps({"ok": True, "block": json.loads(config.trt_llm.model_dump_json())}))
    except Exception as error:
        print(json.dumps({"ok": False, "why": str(error)[:300]}))
"""
BOUNDED = {
    "build.max_seq_len": (1, 1048576),
    "build.max_batch_size": (1, 2048),
    "build.max_num_tokens": (65, 1048576),
    "build.max_beam_width": (1, 1),
}
AT_LEAST_ONE = (
    "build.num_builder_gpus",
    "build.tensor_parallel_count",
    "runtime.kv_cache_host_memory_bytes",
    "runtime.lora_cache_max_adapter_size",
    "runtime.lora_cache_optimal_adapter_size",
    "runtime.lora_cache_host_memory_bytes",
    "runtime.request_default_max_tokens",
)
BOOLEANS = (
    "build.gather_all_token_logits",
    "build.strongly_typed",
    "build.skip_build_result",
    "build.plugin_configuration.use_fp8_context_fmha",
    "runtime.enable_chunked_context",
)
QUANTIZATIONS = (
    "no_quant", "weights_int8", "weights_kv_int8", "weights_int4", "weights_int4_kv_int8", "smooth_quant", "fp8",
    "fp8_kv", "fp8_mlp_only", "fp4", "fp4_kv", "fp4_mlp_only", "int8", "FP8", "",
)  # fmt: skip
ROUTES = ("/v1/embeddings", "/v1/systemone", "/rerank", "/predict", "/predict_tokens", "/embed", "predict", "")
REPOS = (
    "name", "org/name", "./local", "a/b/c", "datasets/a/b", "org/na--me", "org/.name", "org/name.git", "-org/name", "",
    "o" * 100 + "/n", "org/naïve",
)  # fmt: skip
ACCELERATORS = ("T4", "V100", "A10G", "A100", "A100_40GB", "L4", "L40S", "H100", "H100_40GB", "H200", "B200", "H100:2")
VALUES = {
    "build.base_model": ("encoder", "encoder_bert", "Encoder", "bert", "whisper", "llama", "qwen", "", None, 1),
    "build.quantization_type": QUANTIZATIONS,
    "build.quantization_config.calib_size": (64, 63, 16384, 16448, 100, 1536, "1024", None, 64.0, True),
    "build.quantization_config.calib_max_seq_length": (64, 32, 16384, 16448, 65, 2048),
    "build.quantization_config.calib_dataset": ("a/b", 3, None),
    "build.checkpoint_repository.source": ("HF", "GCS", "S3", "AZURE", "LOCAL", "REMOTE_URL", "BASETEN_TRAINING", "hf"),
    "build.checkpoint_repository.repo": (*REPOS, None, 3),
    "build.checkpoint_repository.revision": ("main", None, 1, ""),
    "build.checkpoint_repository.runtime_secret_name": ("s", None, 1),
    "build.checkpoint_repository": (None, {}, {"source": "HF"}, {"repo": "a/b"}, "a/b"),
    "build.plugin_configuration": (
        {"paged_kv_cache": False},
        {"paged_kv_cache": False, "use_paged_context_fmha": False},
        {"use_paged_context_fmha": False},
        {"paged_kv_cache": "yes"},
        {"paged_kv_cache": 3},
        None,
    ),
    "build.moe_expert_parallel_option": (-1, 0, 1, 2, "1", "x"),
    "build.pipeline_parallel_count": (1, 2, "2", "x"),
    "build.sequence_parallel_count": (1, 2, None),
    "build.max_prompt_embedding_table_size": (0, -1, "5", 1.5),
    "build.lora_adapters": ({}, {"a-1.b:c": REPOSITORY}, {"bad name": REPOSITORY}, {"a": {}}, []),
    "build.lora_configuration": ({}, {"max_lora_rank": 8}, {"lora_target_modules": ["q"]}, {"max_lora_rank": "x"}),
    "build.lora_cache_max_adapter_size": (8,),
    "build.a_key_of_tomorrow": (1,),
    "runtime.a_key_of_tomorrow": ("x",),
    "runtime.webserver_default_route": ROUTES,
    "runtime.batch_scheduler_policy": ("max_utilization", "guaranteed_no_evict", "none", None),
    "runtime.kv_cache_free_gpu_mem_fraction": (0.5, "0.5", 1, 7.0, "x", None),
    "runtime.lora_cache_gpu_memory_fraction": (0.5, 1.0, 0.0, 1.5, "0.5", 1),
    "runtime.served_model_name": ("m", None, 3),
    "runtime.total_token_limit": (1, -1, "5", None),
    "runtime": (None, {}, [], {"lora_cache_max_adapter_size": 4, "lora_cache_optimal_adapter_size": 8}),
    "inference_stack": ("v1", "v3", None, ""),
    "version_overrides": ({}, {"bei_version": "1.2"}, {"bei_version": "v1"}, {"bei_bert_version": ""}, None),
    "build": (None, {}),
}


def values() -> dict[str, tuple[Any, ...]]:
    """Path of a field → values to try there."""
    bounded = {
        path: (low, high, low - 1, high + 1, str(low), float(low), True, None) for path, (low, high) in BOUNDED.items()
    }
    at_least_one = dict.fromkeys(AT_LEAST_ONE, (1, 0, "1", None))
    return VALUES | bounded | at_least_one | dict.fromkeys(BOOLEANS, (True, "true", "maybe", 2))


ENCODER_VALUES = dict.fromkeys(
    ("build.max_num_tokens", "build.plugin_configuration", "build.tensor_parallel_count"),
    ({"paged_kv_cache": False}, 100, 16384, 2),
)


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and whole config."""
    by_model = {
        "encoder_bert": values(),
        "encoder": ENCODER_VALUES,
        "decoder": {"build.moe_expert_parallel_option": (-1, 2)},
    }
    for base_model, paths in by_model.items():
        yield f"{base_model} defaults", {"trt_llm": block(base_model)}
        for path, tried in paths.items():
            for value in tried:
                made = {"resources": {"accelerator": "H100"}, "trt_llm": with_value(path, value, base_model)}
                yield f"{base_model} {path}={value!r}", made
    for accelerator in ACCELERATORS:
        for base_model in ("encoder", "encoder_bert"):
            for quantization in ("no_quant", "fp8", "fp4"):
                made = with_value("build.quantization_type", quantization, base_model)
                yield (
                    f"{accelerator} {base_model} {quantization}",
                    {
                        "resources": {"accelerator": accelerator},
                        "trt_llm": made,
                    },
                )


CASES = dict(cases())


@pytest.fixture(scope="session")
def verdicts(in_truss) -> dict[str, dict[str, Any]]:
    lines = in_truss(JUDGE, stdin="\n".join(json.dumps(config) for config in CASES.values())).splitlines()
    return dict(zip(CASES, map(json.loads, lines), strict=True))


def ours(config: dict[str, Any]) -> dict[str, Any] | str:
    """Our block as plain values, or the refusal."""
    try:
        parsed = TRTLLM.model_validate(config["trt_llm"])
        check_hardware(parsed.build, config.get("resources", {}).get("accelerator"))
    except (ValidationError, ValueError) as error:
        return str(error)
    return parsed.model_dump(mode="json")


def test_there_are_enough_cases(verdicts):
    accepted = sum(verdict["ok"] for verdict in verdicts.values())
    assert len(verdicts) >= 200
    assert min(accepted, len(verdicts) - accepted) >= 80


@pytest.mark.parametrize("name", CASES)
def test_same_verdict_and_same_values(verdicts, name):
    truss, mine = verdicts[name], ours(CASES[name])
    assert truss["ok"] == isinstance(mine, dict), (truss, mine)
    if truss["ok"]:
        for part in ("build", "runtime", "version_overrides"):
            assert mine[part] == truss["block"][part]


@pytest.mark.parametrize("name", CASES)
def test_settings_never_raise_anything_but_one_line(name):
    try:
        Settings.load(CASES[name], environ={})
    except SetupError as error:
        assert "\n" not in str(error)
