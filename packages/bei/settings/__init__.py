"""What to serve and how: config.yaml's `trt_llm` block, then BEI_* variables, then flags; checked once, then frozen."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, field_serializer

from bei.errors import SetupError, one_line, short, why
from bei.settings.block import TRTLLM, QuantizationType, Source, check_hardware
from bei.settings.keys import unknown_key, without_effect
from bei.settings.origins import Origins, split_origins
from bei.settings.secrets import Keys, keys_of, split_keys, split_names, without_secrets

Count = Annotated[int, Field(ge=1)]
HostName = Annotated[str, Field(pattern=r"^(\*|(\*\.)?[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])$")]
PoolingSetting = Literal["first", "last", "mean", "max", "mean_sqrt_len", "weighted_mean", "splade"]
RerankTemplate = Literal["qwen3", "mxbai", "bge_gemma", "nemotron", "none"]
AttentionSetting = Literal["causal", "bidirectional"]
DefaultRoute = Literal["/v1/embeddings", "/rerank", "/predict", "/predict_tokens"]

_FROM_ELSEWHERE = ("credential", "without_effect")  # secrets have their own ways in
_NEVER_SHOWN = ("api_key", "repo")  # a key is a secret, and an address may hold one
_OTHER_VARIABLES = ("BEI_CONFIG",)  # read by the command line, before there are settings


class Settings(BaseModel):
    """Every field may be set by an environment variable of its name (BEI_PORT) and by a flag.

    From the block: source, repo, revision, base_model, quantization, route, served_model_name, max_num_tokens (tokens a
    batch, and so the longest text), max_seq_len (tokens of the longest text, where that is to be less), max_batch_size
    (texts a batch), calib_dataset, calib_size (texts) and calib_max_seq_length (tokens) that calibrate a quantized
    engine; `without_effect` names those of its keys that do nothing here. The rest has its default here.

    `allowed_host` holds the names that a request may give as its host: `name`, `*.name`, or `*` for any.

    `api_key` holds every key that is accepted: those of the environment, of flags and of `api_key_file`s.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Source
    repo: str
    revision: str | None
    credential: SecretStr | None
    base_model: Literal["encoder", "encoder_bert"]
    quantization: QuantizationType
    route: DefaultRoute | None
    served_model_name: str
    max_num_tokens: Count
    max_seq_len: Count | None = None
    max_batch_size: Count
    calib_dataset: str
    calib_size: Count
    calib_max_seq_length: Count
    without_effect: tuple[str, ...] = ()

    engine: Literal["auto", "tensorrt", "native", "torch", "null"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    threads: Count | None = None
    tokenization_workers: Count | None = None
    pooling: PoolingSetting | None = None
    rerank_template: RerankTemplate | None = None
    attention: AttentionSetting | None = None

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    uds_path: Path | None = None
    workers: Count = 1
    api_key: Annotated[Keys, BeforeValidator(split_keys)] = ()
    api_key_file: Path | None = None
    allowed_host: Annotated[tuple[HostName, ...], BeforeValidator(split_names)] = ()
    protect_all: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    cors_allow_origin: Annotated[Origins, BeforeValidator(split_origins)] = ()
    drain_seconds: Annotated[float, Field(ge=0)] = 30
    json_output: bool = False
    access_log: bool = False
    otlp_endpoint: str | None = None
    otlp_service_name: str = "bei"

    auto_truncate: bool = True
    default_prompt: str | None = None
    default_prompt_name: str | None = None
    max_client_batch_size: Count = 2048
    max_concurrent_requests: Count = 2048
    max_queue_tokens: Count = 1 << 21
    max_queue_texts: Count = 1 << 18
    max_queue_seconds: Annotated[float, Field(gt=0)] = 20
    max_engine_restarts: Annotated[int, Field(ge=0)] = 5
    rerank_order: Literal["input", "score"] = "input"
    payload_limit: Count = 64_000_000
    max_bytes_in_flight: Count = 1 << 30
    max_connections: Count = 4096

    hub_cache: Path | None = None
    cache_dir: Path = Path("~/.cache/bei")
    max_download_bytes: Count = 200_000_000_000
    allow_private_urls: bool = False
    training_dir: Path = Path("/tmp/training_checkpoints")

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
        environ = os.environ if environ is None else environ
        block = _block(config)
        ways = _from_environment(environ), {k: v for k, v in flags.items() if v not in (None, ())}
        values = _from_block(block) | ways[0] | ways[1]
        name = block.repository.runtime_secret_name
        values["without_effect"] = without_effect(_raw(config))
        values["credential"] = _credential(name, secrets or {}, environ)
        values.setdefault("served_model_name", without_secrets(str(values["repo"])))
        values["api_key"] = keys_of(*ways)
        try:
            settings = cls(**values)
        except ValidationError as exc:
            raise SetupError(_one_line(exc, "setting ")) from None
        _refuse_unservable(settings)
        return settings

    @property
    def max_text_tokens(self) -> int:
        """Of the longest text that the settings allow."""
        return min(self.max_num_tokens, self.max_seq_len or self.max_num_tokens)

    @property
    def public_repo(self) -> str:
        """`repo` as it may be shown: an address without what may be a secret in it."""
        return without_secrets(self.repo)

    @field_serializer("repo")
    def _show_repo(self, repo: str) -> str:
        return without_secrets(repo)

    def redacted(self) -> Self:
        """Without secrets."""
        return self.model_copy(update={"credential": None, "api_key": ()})

    @classmethod
    def from_file(cls, path: Path, **flags: Any) -> Self:
        """Settings for a config.yaml on disk. Raises SetupError."""
        return cls.load(read_config(path), **flags)


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config.yaml. Raises SetupError."""
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except OSError as exc:
        raise SetupError(f"{path}: {why(exc)}; name another file with --config") from None
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # ValueError: not UTF-8, or no date that exists
        raise SetupError(f"{path} is not YAML: {one_line(exc, 300)}") from None
    if not isinstance(config, dict):
        raise SetupError(f"{path} holds no mapping; a config.yaml has a `trt_llm` block")
    return config


def _block(config: Mapping[str, Any]) -> TRTLLM:
    """The block at top level, or under `model_metadata` as a pushed model.py has it."""
    raw = _raw(config)
    if raw is None:
        raise SetupError("config.yaml has no `trt_llm` block, neither at top level nor under `model_metadata`")
    try:
        block = TRTLLM.model_validate(raw)
        _refuse_unserved(block)
        check_hardware(block.build, _accelerator(config))
    except ValidationError as exc:
        raise SetupError(_one_line(exc, "trt_llm.")) from None
    except ValueError as exc:
        raise SetupError(str(exc)) from None
    return block


_MODELS = "`encoder_bert` (BERT and its kin, in 16 bits) or `encoder` (language models, in bf16, fp8 or fp4)"


def _refuse_unserved(block: TRTLLM) -> None:
    """Raises SetupError for what truss takes, or takes until it is pushed, and this engine does not serve."""
    unknown, build = unknown_key(block), block.build
    if unknown:
        raise SetupError(unknown)
    if "base_model" not in build.model_fields_set:
        raise SetupError(f"trt_llm.build.base_model is missing: set {_MODELS}")
    if build.base_model == "decoder":
        raise SetupError(f"trt_llm.build.base_model: `decoder` generates text; to embed, set {_MODELS}")
    if build.lora_adapters:
        raise SetupError("trt_llm.build.lora_adapters: adapters are for generating models; merge one into the weights")


def _raw(config: Mapping[str, Any]) -> Any:
    return config.get("trt_llm") or _mapping(config, "model_metadata").get("trt_llm")


def _accelerator(config: Mapping[str, Any]) -> str | None:
    value = _mapping(config, "resources").get("accelerator")
    if value is not None and not isinstance(value, str):
        raise SetupError(f"config.yaml: `resources.accelerator` must be text as `L4`, not {short(value)}")
    return value


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise SetupError(f"config.yaml: `{key}` must be a mapping, not {short(value)}")
    return value


def _from_block(block: TRTLLM) -> dict[str, Any]:
    repository = block.repository
    values = {
        "source": repository.source,
        "repo": repository.repo,
        "revision": repository.revision,
        "base_model": block.build.base_model.value,
        "quantization": block.build.quantization_type,
        "route": block.runtime.webserver_default_route,
        "max_num_tokens": block.build.max_num_tokens,
        "max_seq_len": block.build.max_seq_len,
        "max_batch_size": block.build.max_batch_size,
        **block.build.quantization_config.model_dump(include={"calib_dataset", "calib_size", "calib_max_seq_length"}),
    }
    if block.runtime.served_model_name:
        values["served_model_name"] = block.runtime.served_model_name
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    known = {f"BEI_{name.upper()}": name for name in Settings.model_fields if name not in _FROM_ELSEWHERE}
    ours = {key: value for key, value in environ.items() if key.startswith("BEI_") and key not in _OTHER_VARIABLES}
    unknown = sorted(ours.keys() - known.keys())
    if unknown:
        raise SetupError(f"environment variable {unknown[0]} is not a setting; settings are {', '.join(sorted(known))}")
    return {known[key]: value for key, value in ours.items()}


def _credential(name: str, secrets: Mapping[str, str], environ: Mapping[str, str]) -> SecretStr | None:
    """The secret that `runtime_secret_name` names: Truss's, else TRUSS_SECRET_<name>, else HF_TOKEN."""
    value = secrets[name] if name in secrets else environ.get(f"TRUSS_SECRET_{name}") or environ.get("HF_TOKEN")
    return SecretStr(value) if value else None


def _refuse_unservable(settings: Settings) -> None:
    if settings.default_prompt is not None and settings.default_prompt_name is not None:
        raise SetupError("settings default_prompt and default_prompt_name: set one of them")
    if settings.quantization is QuantizationType.NO_QUANT:
        return
    if settings.base_model == "encoder_bert":
        raise SetupError(
            "trt_llm.build.quantization_type: `encoder_bert` is served in 16 bits; set no_quant, "
            f"not {settings.quantization}"
        )


def _one_line(error: ValidationError, prefix: str) -> str:
    """`trt_llm.build.max_num_tokens: Input should be greater than 64, not 64`, and how many more there are."""
    first, count = error.errors()[0], error.error_count()
    where = prefix + ".".join(str(part) for part in first["loc"]) if first["loc"] else prefix.rstrip(".")
    message = first["msg"].removeprefix("Value error, ")
    secret = any(part in _NEVER_SHOWN for part in first["loc"])
    shown = first["loc"] and not secret and not isinstance(first["input"], dict)
    given = f", not {short(first['input'])}" if shown else ""
    return f"{where}: {message}{given}" + (f" (and {count - 1} more)" if count > 1 else "")
