"""The options of sentence_bert_config.json for transformers' loading of a model: each is obeyed or refused by name."""

from collections.abc import Mapping
from typing import Any

from bei.errors import SetupError, short

_OLDER = {"model_kwargs": "model_args", "config_kwargs": "config_args", "processor_kwargs": "tokenizer_args"}
_RUNNING = {
    *("attn_implementation", "torch_dtype", "dtype", "trust_remote_code", "device_map", "low_cpu_mem_usage", "token"),
    *("add_pooling_layer", "use_safetensors", "torchscript", "use_cache", "revision", "code_revision", "cache_dir"),
    *("use_memory_efficient_attention", "unpad_inputs", "local_files_only"),
}
_TOKENIZER = {*_RUNNING, "padding_side", "use_fast", "clean_up_tokenization_spaces", "model_max_length"}
_PROCESSING = {"padding", "truncation", "padding_side", "pad_to_multiple_of", "return_tensors", "logits_to_keep"}
_OUTPUTS = (None, "last_hidden_state", "logits")


def with_options(config: Mapping[str, Any], stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json, overridden by the arguments for transformers' config and model."""
    given = {**_of(stated, "model_kwargs"), **_of(stated, "config_kwargs")}
    return {**config, **{key: value for key, value in given.items() if key not in _RUNNING}}


def check_options(stated: Mapping[str, Any]) -> None:
    """Raises SetupError for an unsupported option that changes how texts are read or which states are pooled."""
    tokenizer = _of(stated, "processor_kwargs").keys() - _TOKENIZER
    processing = stated.get("processing_kwargs") or {}
    reading = {key for kind in ("common", "text") for key in (processing.get(kind) or {})} - _PROCESSING
    for place, keys in (("processor_kwargs", tokenizer), ("processing_kwargs", reading)):
        if keys:
            raise SetupError(f"sentence_bert_config.json: {place}: {short(min(keys))} is not supported")
    text = (stated.get("modality_config") or {}).get("text") or {}
    if text.get("method_output_name") not in _OUTPUTS or stated.get("module_output_name") == "sentence_embedding":
        raise SetupError(
            "sentence_bert_config.json: only a model's last hidden states are pooled here, not its pooler's"
        )


def max_length(stated: Mapping[str, Any]) -> int | None:
    """The longest text, in tokens, that the module states."""
    return stated.get("max_seq_length") or _of(stated, "processor_kwargs").get("model_max_length")


def _of(stated: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return stated.get(name) or stated.get(_OLDER[name]) or {}
