"""Every setting, declared once: name, type, default, bounds and help. A group has the settings of one kind of consumer.

The flags of `bei`, the environment variables, the refusals and docs/settings.md follow from these lines. The help gives
the unit, and the meaning of an unset setting. A setting without a default has that of its key in config.yaml.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_serializer

from bei.settings.block import QuantizationType, Source
from bei.settings.byte_counts import to_bytes
from bei.settings.devices import normalized
from bei.settings.networks import Networks, split_networks
from bei.settings.origins import Origins, split_origins
from bei.settings.secrets import Keys, split_keys, split_names, without_secrets

HostName = Annotated[str, Field(pattern=r"^(\*|(\*\.)?[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])$")]
Alias = Annotated[str, Field(pattern=r"^[^=]+=[^=]+$")]
Label = Annotated[str, Field(min_length=1)]
PoolingName = Literal["first", "last", "mean", "max", "mean_sqrt_len", "weighted_mean"]
"""Every mode of pooling but the sum, which only a sparse model's head asks for."""

PoolingSetting = Literal[PoolingName, "splade"]
RerankTemplate = Literal["qwen3", "mxbai", "bge_gemma", "zerank", "nemotron", "none"]
AttentionSetting = Literal["causal", "bidirectional"]
DefaultRoute = Literal["/v1/embeddings", "/rerank", "/predict", "/predict_tokens"]

NO_ROW = "changes no row"
"""Marks a setting of the model that a resumed `bei embed` may change. Every other one is a part of the job."""


class Group(BaseModel):
    """Settings are frozen, and an unknown name is refused. Other processes read them as JSON, an infinite number
    included."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class SourceSettings(Group):
    """Checkpoint and folders."""

    source: Source = Field(description="The kind of place where the checkpoint is.")
    repo: str = Field(description="The checkpoint: a repository, a path in a bucket, an address, or a folder.")
    revision: str | None = Field(None, description="The branch, tag or commit. Unset: the newest.")
    credential: SecretStr | None = None
    hub_cache: Path | None = Field(None, description="The folder of the hub's own cache. Unset: HF_HUB_CACHE.")
    cache_dir: Path = Field(Path("~/.cache/bei"), description="The folder for downloads and built engines.")
    max_download_bytes: Annotated[int, BeforeValidator(to_bytes)] = Field(
        200_000_000_000, ge=1, description="The most bytes of a download. A larger one is refused."
    )
    allow_private_urls: bool = Field(False, description="A REMOTE_URL may lead to a private address.")
    training_dir: Path = Field(
        Path("/tmp/training_checkpoints"), description="The folder where Baseten mounts the checkpoints of trainings."
    )

    @property
    def public_repo(self) -> str:
        """`repo` as it may be shown: an address without the parts that may be secret."""
        return without_secrets(self.repo)

    @field_serializer("repo")
    def _show_repo(self, repo: str) -> str:
        return without_secrets(repo)


class ModelSettings(SourceSettings):
    """Model and engine."""

    base_model: Annotated[Literal["encoder", "encoder_bert"], NO_ROW] = Field(
        description="The kind of model: encoder_bert is BERT and its relatives, encoder is a language model."
    )
    quantization: QuantizationType = Field(description="The format of an encoder's weights and products on a GPU.")
    calib_dataset: str = Field(description="The texts that calibrate a quantized engine: a data set, or a file.")
    calib_size: int = Field(ge=1, description="The number of texts that calibrate.")
    calib_max_seq_length: int = Field(ge=1, description="The most tokens of a text that calibrates.")
    served_model_name: Annotated[str, NO_ROW] = Field(description="The name that answers carry. Unset: the repository.")
    route: Annotated[DefaultRoute | None, NO_ROW] = Field(
        None, description="The route that / and /invocations answer as. Unset: the first of the model's task."
    )
    engine: Literal["auto", "tensorrt", "native", "torch", "static", "null"] = Field(
        "auto", description="The engine that computes. auto takes the fastest that runs here."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8", "int4"] = Field(
        "auto", description="The type of the numbers that the engine computes in. Unset or auto: the engine chooses."
    )
    threads: Annotated[int | None, NO_ROW] = Field(
        None, ge=1, description="The number of processors that compute. Unset: all that the container may use."
    )
    devices: Annotated[str | None, AfterValidator(normalized), NO_ROW] = Field(
        None,
        description="The devices that compute, an engine on each: cuda, numa, cuda:0,cuda:1 or cpu:0-15,cpu:16-31. "
        "Unset: one engine.",
    )
    tokenization_workers: Annotated[int | None, NO_ROW] = Field(
        None, ge=1, description="The number of threads that tokenize. Unset: one per processor."
    )
    pooling: PoolingSetting | None = Field(
        None, description="The pooling of token states into a vector, where the checkpoint does not say."
    )
    rerank_template: Annotated[RerankTemplate | Path | None, NO_ROW] = Field(
        None, description="The prompt of a language model that reranks, or a JSON file of it. Unset: that of its name."
    )
    labels: Annotated[tuple[Label, ...], BeforeValidator(split_names), NO_ROW] = Field(
        (), description="The name of a classifier's output, where config.json has none; all of them, in their order."
    )
    attention: AttentionSetting | None = Field(
        None, description="The tokens that a token attends to, where only the checkpoint's own code says so."
    )
    task_adapter: str | None = Field(
        None,
        description="The task whose adapter is served, of a checkpoint that has several; none serves no adapter.",
    )
    max_num_tokens: int = Field(
        ge=1, description="The most tokens of a batch, and so of a text. An encoder's block that names none has 16384."
    )
    max_seq_len: int | None = Field(
        None, ge=1, description="The most tokens of a text. Unset: all that the model and a batch hold."
    )
    max_batch_size: Annotated[int, NO_ROW] = Field(ge=1, description="The most texts of a batch.")
    auto_truncate: bool = Field(True, description="A text that is too long is cut, unless the request says otherwise.")
    default_prompt: str | None = Field(
        None, description="The text that is put before each input. Unset: the model's default prompt."
    )
    default_prompt_name: str | None = Field(
        None, description="The name of the model's prompt that is put before each input. Unset: its default prompt."
    )
    int8_ranges: Annotated[Path | None, NO_ROW] = Field(
        None,
        description="The ranges of int8 and uint8 vectors, a file of bei build --calibrate. Unset: fixed ones.",
    )
    rerank_order: Annotated[Literal["input", "score"], NO_ROW] = Field(
        "input", description="The order of /rerank's answers; score is best first, as in TEI (haystack needs it)."
    )

    @property
    def max_text_tokens(self) -> int:
        """The number of tokens of the longest text that the settings allow."""
        return min(self.max_num_tokens, self.max_seq_len or self.max_num_tokens)


class ServerSettings(Group):
    """Server."""

    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="The port to listen on. 0 takes a free one.")
    uds_path: Path | None = Field(None, description="A Unix socket to listen on, in place of a port.")
    workers: int = Field(1, ge=1, description="The number of processes that read, tokenize and answer.")
    api_key: Annotated[Keys, BeforeValidator(split_keys)] = Field(
        (), description="The required API key, or several separated by commas; safer as BEI_API_KEY."
    )
    api_key_file: Path | None = Field(None, description="A file of such keys, one per line.")
    allowed_host: Annotated[tuple[HostName, ...], BeforeValidator(split_names)] = Field(
        (), description="A host that requests may name: name, *.name, or * for any."
    )
    alias: Annotated[tuple[Alias, ...], BeforeValidator(split_names)] = Field(
        (), description="Another name of a served model, as NAME=MODEL."
    )
    protect_all: bool = Field(False, description="/health, /metrics and the page for browsers need a key, too.")
    tls_cert: Path | None = Field(None, description="A certificate and its chain, PEM; the server then speaks TLS.")
    tls_key: Path | None = Field(None, description="The certificate's key, PEM. Unset: it is in --tls-cert.")
    cors_allow_origin: Annotated[Origins, BeforeValidator(split_origins)] = Field(
        (), description="Pages of this origin (https://example.com), or of any (*), may read answers."
    )
    root_path: Annotated[str, Field(pattern=r"^((/[0-9A-Za-z._~-]+)+)?$")] = Field(
        "", description="The prefix of our paths behind a proxy, such as /emb. The proxy may remove it or leave it."
    )
    trust_proxy: Annotated[Networks, BeforeValidator(split_networks)] = Field(
        (), description="A proxy's address, a network, or * for any: its headers say who asks, and below which prefix."
    )
    batch_dir: Path | None = Field(
        None, description="The folder of OpenAI's Batch API: its files and batches. Unset: its routes are a 404."
    )
    drain_seconds: float = Field(
        30,
        ge=0,
        description="The seconds that calls in flight have after SIGTERM. A model that is unloaded answers its "
        "requests first, unless it answers none and ends no batch in as many seconds.",
    )
    max_engine_restarts: int = Field(
        5, ge=0, description="Crashes in a row of the engine, or of a worker, after which it stays down."
    )


class LifeSettings(Group):
    """Life of a model."""

    lazy: bool = Field(False, description="The model is loaded at the first request for it, which waits.")
    idle_unload: float | None = Field(
        None,
        gt=0,
        description="The seconds without a request after which the model is unloaded; its next request loads it again. "
        "Unset: never.",
    )


class LimitSettings(Group):
    """Limits."""

    max_client_batch_size: int = Field(2048, ge=1, description="The most texts of a request. More are a 413.")
    max_concurrent_requests: int = Field(2048, ge=1, description="The most requests at once. More are a 429.")
    max_queue_tokens: int = Field(1 << 21, ge=1, description="The most tokens in the queue. More are a 429.")
    max_queue_texts: int = Field(1 << 18, ge=1, description="The most texts in the queue. More are a 429.")
    max_queue_seconds: float = Field(20, gt=0, description="The most seconds of work in the queue. More are a 429.")
    payload_limit: Annotated[int, BeforeValidator(to_bytes)] = Field(
        64_000_000, ge=1, description="The most bytes of a request. More are a 413."
    )
    max_bytes_in_flight: Annotated[int, BeforeValidator(to_bytes)] = Field(
        1 << 30, ge=1, description="The most bytes of all requests and their answers. More are a 429."
    )
    max_connections: int = Field(4096, ge=1, description="The most connections. More are closed.")
    max_batch_dir_bytes: Annotated[int, BeforeValidator(to_bytes)] = Field(
        20_000_000_000, ge=1, description="The most bytes of files in batch_dir. An upload beyond is a 413."
    )
    memory_budget: Annotated[int | None, BeforeValidator(to_bytes)] = Field(
        None,
        ge=1,
        description="The most bytes of all loaded models, such as 8GB. The least recently used one is unloaded "
        "first; its next request loads it again. Unset: no limit.",
    )


class ObservationSettings(Group):
    """Logs and traces."""

    json_output: bool = Field(False, description="Log lines are JSON.")
    access_log: bool = Field(False, description="Each request has a log line.")
    otlp_endpoint: str | None = Field(
        None, description="The OpenTelemetry collector for traces, such as http://localhost:4317. Unset: no traces."
    )
    otlp_service_name: str = Field("bei", description="The name of this server in traces.")
