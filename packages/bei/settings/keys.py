"""The keys of a `trt_llm` block that have an effect here; every other one is refused by name, or named in the log."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from bei.settings.block import TRTLLM

OBEYED = {
    "build.checkpoint_repository.source": "source",
    "build.checkpoint_repository.repo": "repo",
    "build.checkpoint_repository.revision": "revision",
    "build.base_model": "base_model",
    "build.quantization_type": "quantization",
    "build.quantization_config.calib_dataset": "calib_dataset",
    "build.quantization_config.calib_size": "calib_size",
    "build.quantization_config.calib_max_seq_length": "calib_max_seq_length",
    "build.max_num_tokens": "max_num_tokens",
    "build.max_seq_len": "max_seq_len",
    "build.max_batch_size": "max_batch_size",
    "runtime.served_model_name": "served_model_name",
    "runtime.webserver_default_route": "route",
}
"""Key → the setting that it sets."""
SECRET_NAME = "build.checkpoint_repository.runtime_secret_name"
"""The key that names the credential's secret; it sets no setting."""
WITHOUT_EFFECT = {
    **dict.fromkeys(
        (
            "build.tensor_parallel_count",
            "build.pipeline_parallel_count",
            "build.sequence_parallel_count",
            "build.moe_expert_parallel_option",
        ),
        "an encoder runs on one GPU",
    ),
    **dict.fromkeys(
        (
            "build.plugin_configuration.paged_kv_cache",
            "build.plugin_configuration.use_paged_context_fmha",
            "build.plugin_configuration.use_fp8_context_fmha",
            "runtime.kv_cache_free_gpu_mem_fraction",
            "runtime.kv_cache_host_memory_bytes",
            "runtime.enable_chunked_context",
        ),
        "an encoder keeps no cache of keys and values",
    ),
    **dict.fromkeys(
        (
            "build.max_beam_width",
            "build.max_prompt_embedding_table_size",
            "build.gather_all_token_logits",
            "runtime.batch_scheduler_policy",
            "runtime.request_default_max_tokens",
            "runtime.total_token_limit",
        ),
        "an encoder generates nothing",
    ),
    **dict.fromkeys(
        (
            "build.strongly_typed",
            "build.num_builder_gpus",
            "build.skip_build_result",
            *(
                f"version_overrides.{name}_version"
                for name in ("engine_builder", "briton", "bei", "bei_bert", "v2_llm")
            ),
        ),
        "it concerns Baseten's build and images",
    ),
    **dict.fromkeys(
        (
            "build.lora_configuration.max_lora_rank",
            "build.lora_configuration.lora_target_modules",
            "runtime.lora_cache_max_adapter_size",
            "runtime.lora_cache_optimal_adapter_size",
            "runtime.lora_cache_gpu_memory_fraction",
            "runtime.lora_cache_host_memory_bytes",
        ),
        "it concerns adapters, which are refused",
    ),
}
"""Keys without effect here, with the reason."""


def without_effect(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a block, as written, that ask for something without effect here."""
    return tuple(path for path, value in leaves(raw) if path in WITHOUT_EFFECT and value is not None)


def unknown_key(block: BaseModel, path: str = "trt_llm") -> str | None:
    """Why the first unknown key is refused, with the nearest known one; None where all are known."""
    for key in block.model_extra or ():
        elsewhere = [f"{place}.{key}" for place, model in _places() if key in model.model_fields]
        meant = elsewhere or [f"{path}.{name}" for name in get_close_matches(key, type(block).model_fields, 1)]
        remedy = f"did you mean {meant[0]}?" if meant else f"keys are {', '.join(type(block).model_fields)}"
        return f"{path}.{key}: no such key; {remedy}"
    inner = ((name, getattr(block, name)) for name in type(block).model_fields)
    found = (unknown_key(of, f"{path}.{name}") for name, of in inner if isinstance(of, BaseModel))
    return next((reason for reason in found if reason), None)


def leaves(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its path, such as `build.max_seq_len`."""
    for key, value in raw.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _places() -> Iterator[tuple[str, Any]]:
    for name in ("build", "runtime", "version_overrides"):
        yield f"trt_llm.{name}", TRTLLM.model_fields[name].annotation
