"""The v1 `trt_llm` block, field for field as truss has it: types, defaults, refusals (truss/base/trt_llm_config.py).

`inference_stack: v2` and a `speculator` are for generating models; a block with either is refused here.
"""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from bei.settings.gpus import AMPERE, CAPABILITIES, NEEDS, format_of
from bei.settings.secrets import without_secrets

StrictInt = Annotated[int, Field(strict=True, ge=1)]
BEI_MAX_NUM_TOKENS = 16384
"""The value for an `encoder` when `max_num_tokens` is not set."""


REFUSED = {
    "inference_stack": "`v2` is for generating models; set `v1`",
    "build.speculator": "speculation is for generating models; remove the key",
    "build.lora_adapters": "adapters of a request are for generating models; serve one alone, as checkpoint_repository",
}
"""Keys of truss for models that we do not serve, each with the remedy."""


class BaseModelKind(StrEnum):
    ENCODER = "encoder"
    ENCODER_BERT = "encoder_bert"
    DECODER = "decoder"
    PALMYRA = "palmyra"
    QWEN = "qwen"
    LLAMA = "llama"
    MISTRAL = "mistral"
    DEEPSEEK = "deepseek"
    WHISPER = "whisper"


class QuantizationType(StrEnum):
    NO_QUANT = "no_quant"
    WEIGHTS_INT8 = "weights_int8"
    WEIGHTS_KV_INT8 = "weights_kv_int8"
    WEIGHTS_INT4 = "weights_int4"
    WEIGHTS_INT4_KV_INT8 = "weights_int4_kv_int8"
    SMOOTH_QUANT = "smooth_quant"
    FP8 = "fp8"
    FP8_KV = "fp8_kv"
    FP8_MLP_ONLY = "fp8_mlp_only"
    FP4 = "fp4"
    FP4_KV = "fp4_kv"
    FP4_MLP_ONLY = "fp4_mlp_only"


class Source(StrEnum):
    HF = "HF"
    GCS = "GCS"
    S3 = "S3"
    AZURE = "AZURE"
    LOCAL = "LOCAL"
    REMOTE_URL = "REMOTE_URL"
    BASETEN_TRAINING = "BASETEN_TRAINING"


class _Block(BaseModel):
    """Unknown keys are kept, as truss keeps them while parsing."""

    model_config = ConfigDict(extra="allow")


_PLAIN_ID = re.compile(r"(?=.{1,96}$)(?!.*[.]git$)(\w+([-.]\w+)*/)?\w+([-.]\w+)*", re.ASCII)
"""Most ids. The library judges any other one; importing it takes a twentieth of a start."""


class CheckpointRepository(_Block):
    source: Source
    repo: str
    revision: str | None = None
    runtime_secret_name: str = "hf_access_token"

    @model_validator(mode="after")
    def _repo_id(self) -> Self:
        if self.source is Source.HF and not _PLAIN_ID.fullmatch(self.repo):
            _check_repo_id(self.repo)
        return self


def _check_repo_id(repo: str) -> None:
    """Raises ValueError with the hub's reason."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its __init__ has no __all__

    try:
        validate_repo_id(repo)
    except HFValidationError as exc:
        reason = str(exc).replace(repo, without_secrets(repo))
        raise ValueError(f"`repo` is not a Hugging Face repository id: {reason}") from None


class QuantizationConfig(_Block):
    calib_size: int = 1024
    calib_dataset: str = "abisee/cnn_dailymail"
    calib_max_seq_length: int = 1536

    @field_validator("calib_size", "calib_max_seq_length")
    @classmethod
    def _multiple_of_64(cls, value: int) -> int:
        if not 64 <= value <= 16384 or value % 64:
            raise ValueError(f"must be a multiple of 64 from 64 to 16384, not {value}")
        return value


class PluginConfiguration(_Block):
    paged_kv_cache: bool = True
    use_paged_context_fmha: bool = True
    use_fp8_context_fmha: bool = False


class LoraConfiguration(_Block):
    max_lora_rank: int = 64
    lora_target_modules: list[str] = []


_LORA_CACHE = (
    "lora_cache_max_adapter_size",
    "lora_cache_optimal_adapter_size",
    "lora_cache_gpu_memory_fraction",
    "lora_cache_host_memory_bytes",
)


class Build(_Block):
    base_model: BaseModelKind = BaseModelKind.DECODER
    max_seq_len: Annotated[int, Field(strict=True, ge=1, le=1048576)] | None = None
    max_batch_size: Annotated[int, Field(strict=True, ge=1, le=2048)] = 256
    max_num_tokens: Annotated[int, Field(strict=True, gt=64, le=1048576)] = 8192
    max_beam_width: Annotated[int, Field(strict=True, ge=1, le=1)] = 1
    max_prompt_embedding_table_size: int = 0
    checkpoint_repository: CheckpointRepository | None = None
    gather_all_token_logits: bool = False
    strongly_typed: bool = False
    quantization_type: QuantizationType = QuantizationType.NO_QUANT
    quantization_config: QuantizationConfig = QuantizationConfig()
    tensor_parallel_count: StrictInt = 1
    pipeline_parallel_count: int = 1
    moe_expert_parallel_option: int = -1
    sequence_parallel_count: int = 1
    plugin_configuration: PluginConfiguration = PluginConfiguration()
    num_builder_gpus: StrictInt | None = None
    speculator: None = None
    lora_adapters: (
        dict[Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_\-\.:]+$")], CheckpointRepository] | None
    ) = None
    lora_configuration: LoraConfiguration | None = None
    skip_build_result: bool = False

    @field_validator("speculator", mode="before")
    @classmethod
    def _no_speculator(cls, value: Any) -> None:
        if value is not None:
            raise ValueError(REFUSED["build.speculator"])

    @model_validator(mode="before")
    @classmethod
    def _lora_cache_is_runtime(cls, data: Any) -> Any:
        misplaced = [key for key in _LORA_CACHE if isinstance(data, dict) and key in data]
        if misplaced:
            raise ValueError(f"{', '.join(misplaced)} must be configured under trt_llm.runtime, not trt_llm.build")
        return data

    @model_validator(mode="after")
    def _expert_parallelism(self) -> Self:
        option = self.moe_expert_parallel_option
        if self.base_model is BaseModelKind.DECODER and option != -1 and not 0 < option <= self.tensor_parallel_count:
            raise ValueError("moe_expert_parallel_option must be -1, or from 1 to tensor_parallel_count")
        return self

    @model_validator(mode="after")
    def _encoders(self) -> Self:
        """Truss's values for encoders: one GPU per replica, and for `encoder` no cache of keys and values."""
        plugins = self.plugin_configuration
        if self.base_model in (BaseModelKind.ENCODER, BaseModelKind.ENCODER_BERT):
            self.tensor_parallel_count = self.pipeline_parallel_count = self.sequence_parallel_count = 1
        if self.base_model is BaseModelKind.ENCODER:
            if "max_num_tokens" not in self.model_fields_set:
                self.max_num_tokens = BEI_MAX_NUM_TOKENS
            self.plugin_configuration = plugins.model_copy(
                update={"paged_kv_cache": False, "use_paged_context_fmha": False}
            )
        elif plugins.use_paged_context_fmha and not plugins.paged_kv_cache:
            raise ValueError("plugin_configuration: use_paged_context_fmha requires paged_kv_cache")
        return self


class Runtime(_Block):
    kv_cache_free_gpu_mem_fraction: float = 0.9
    kv_cache_host_memory_bytes: StrictInt | None = None
    lora_cache_max_adapter_size: StrictInt | None = None
    lora_cache_optimal_adapter_size: StrictInt | None = None
    lora_cache_gpu_memory_fraction: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    lora_cache_host_memory_bytes: StrictInt | None = None
    enable_chunked_context: bool = True
    batch_scheduler_policy: Literal["max_utilization", "guaranteed_no_evict"] = "guaranteed_no_evict"
    request_default_max_tokens: StrictInt | None = None
    served_model_name: str | None = None
    total_token_limit: int = 500000
    webserver_default_route: (
        Literal["/v1/embeddings", "/v1/systemone", "/rerank", "/predict", "/predict_tokens"] | None
    ) = None

    @model_validator(mode="after")
    def _adapter_sizes(self) -> Self:
        largest, optimal = self.lora_cache_max_adapter_size, self.lora_cache_optimal_adapter_size
        if largest is not None and optimal is not None and optimal > largest:
            raise ValueError("lora_cache_optimal_adapter_size cannot be greater than lora_cache_max_adapter_size")
        return self


class VersionOverrides(_Block):
    engine_builder_version: str | None = None
    briton_version: str | None = None
    bei_version: str | None = None
    bei_bert_version: str | None = None
    v2_llm_version: str | None = None

    @field_validator("engine_builder_version", "briton_version", "bei_version", "bei_bert_version")
    @classmethod
    def _a_number(cls, value: str | None) -> str | None:
        if value is not None and not value[:1].isdigit():
            raise ValueError("must start with a number")
        return value


class TRTLLM(_Block):
    """`trt_llm` of config.yaml."""

    build: Build
    inference_stack: Literal["v1"] = "v1"
    runtime: Runtime = Runtime()
    version_overrides: VersionOverrides = VersionOverrides()

    @property
    def repository(self) -> CheckpointRepository:
        """Raises ValueError without a repository; every block that was read has one."""
        if self.build.checkpoint_repository is None:
            raise ValueError("build.checkpoint_repository is required")
        return self.build.checkpoint_repository

    @model_validator(mode="after")
    def _v1(self) -> Self:
        _ = self.repository
        plugins, decoder = self.build.plugin_configuration, self.build.base_model not in ("encoder", "encoder_bert")
        paged = plugins.use_paged_context_fmha and plugins.paged_kv_cache
        if self.runtime.enable_chunked_context and decoder and not paged:
            raise ValueError("runtime.enable_chunked_context needs paged_kv_cache and use_paged_context_fmha")
        return self


def check_hardware(build: Build, accelerator: str | None) -> None:
    """Truss's refusals of base model, quantization and `resources.accelerator` together. Raises ValueError."""
    name = (accelerator or "").partition(":")[0]
    if build.base_model is BaseModelKind.WHISPER:
        raise ValueError("trt_llm.build.base_model: whisper is served by a Truss chain, not by this block")
    if build.base_model not in (BaseModelKind.ENCODER, BaseModelKind.ENCODER_BERT, BaseModelKind.DECODER):
        raise ValueError(f"trt_llm.build.base_model: {build.base_model.value} has been renamed to `decoder`")
    capability, format = CAPABILITIES.get(name), format_of(build.quantization_type)
    if capability is None:
        return
    if capability < AMPERE:
        if build.base_model is not BaseModelKind.ENCODER_BERT:
            raise ValueError(
                f"resources.accelerator: {name} runs `encoder_bert` only; use A10G, A100, L4, H100 or newer"
            )
    elif format is not None and capability < NEEDS[format].capability:
        raise ValueError(f"trt_llm.build.quantization_type: {format} needs {NEEDS[format].gpus}")
