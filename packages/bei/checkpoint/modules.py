"""sentence-transformers' files: the layers after the encoder, input length, casing.

Both layouts are read: up to version 5 (`pooling_mode_mean_tokens: true`) and from 6 (`pooling_mode: "mean"`).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from bei.architectures.family import ScoreTokens
from bei.architectures.spec import (
    MEAN,
    Activation,
    Dense,
    HeadLayer,
    Int8Tanh,
    LayerNorm,
    Log1pRelu,
    Normalize,
    Pooling,
    PoolingMode,
)
from bei.checkpoint.router import ROUTERS, routes_of
from bei.checkpoint.tensors import Tensor, scan
from bei.errors import SetupError, one_line, short, why

log = logging.getLogger("bei")

MAX_JSON = 1 << 28  # bytes; the largest known tokenizer.json has 40 MB
_MAX_OTHER = 1 << 25  # bytes of other files, whose parsed form may take 25 times as much memory

# In the order in which sentence-transformers concatenates the flags of its older layout.
_MODES: dict[str, PoolingMode] = {
    "cls": "first",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: dict[str, Activation] = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}
_CLASSES = ("SentenceTransformer", "SparseEncoder", "CrossEncoder", "MultiVectorEncoder", "ColBERT")
Static = Literal["StaticEmbedding", "model2vec"]
_LIBRARIES = ("sentence_transformers.", "pylate.")
_ROUTERS = ("router_config.json", "config.json")
_PUBLISHED = ("st_quantize.FlexibleQuantizer",)
"""Modules of a repository's own whose published code is implemented here: pplx-embed's, whose default is int8."""

_ONCE = (("Transformer", "MLMTransformer", "StaticEmbedding"), ("Pooling", "SpladePooling"), ("MultiVectorMask",))
_FEATURES = ("sentence_embedding", "token_embeddings")
_LENGTH_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


@dataclass(frozen=True)
class Modules:
    """`encoder` is the folder of config.json; `tensors` are those of the head layers, under our names.

    Layers before the pooling, or all layers if there is none, are the `token_head`. `sparse`: the head of the encoder's
    masked language model comes first. `mask`: the folder of a MultiVectorMask. `score_tokens`: the tokens of a language
    model whose logits are the score. `saved_as` is the class of sentence-transformers that saved the folder. `static`:
    there is no encoder but a table of token vectors, in the layout of sentence-transformers or of Model2Vec. `queries`:
    the folder of a SparseStaticEmbedding that reads queries; `default_route` is for texts that are of neither kind.
    `normalizes`: the last module is a Normalize, which is not in `head`: each request says whether it is applied.
    """

    encoder: Path
    token_head: tuple[HeadLayer, ...] = ()
    pooling: Pooling | None = None
    head: tuple[HeadLayer, ...] = ()
    tensors: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    sparse: bool = False
    mask: Path | None = None
    score_tokens: ScoreTokens | None = None
    saved_as: str | None = None
    static: Static | None = None
    queries: Path | None = None
    default_route: str | None = None
    normalizes: bool = False

    @property
    def cross_encoder(self) -> bool:
        return self.saved_as == "CrossEncoder"


def read_json(file: Path, kind: type = dict) -> Any:
    """The content of a JSON file; an empty `kind` if the file is missing. Raises SetupError if it does not parse, does
    not hold a `kind`, or is larger than any model's."""
    most = MAX_JSON if file.name == "tokenizer.json" else _MAX_OTHER
    try:
        with file.open("rb") as opened:
            content = opened.read(most + 1)
    except FileNotFoundError:
        return kind()
    except OSError as exc:
        raise SetupError(f"{file}: {why(exc)}") from None
    if len(content) > most:
        raise SetupError(f"{file} is larger than {most} bytes, the most that is read")
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as exc:
        raise SetupError(f"{file} is not valid JSON ({one_line(exc)}); download it again") from None
    if not isinstance(value, kind):
        raise SetupError(f"{file} holds a {type(value).__name__}, not a {kind.__name__}; download it again")
    return value


def inside(folder: Path, name: Any, said_by: str) -> Path:
    """The path of a file or folder that the checkpoint's file `said_by` names. Raises SetupError if it is outside the
    checkpoint."""
    if not isinstance(name, str) or "\0" in name or PurePosixPath(name).is_absolute() or ".." in name.split("/"):
        raise SetupError(f"{said_by} names {short(name)}, which is not inside the checkpoint's folder")
    return folder / name


def read_modules(folder: Path) -> Modules:
    """Follow modules.json. Raises SetupError for a module that is not supported."""
    building = _Building(folder)
    for module in read_json(folder / "modules.json", list):
        place = inside(folder, module["path"], "modules.json")
        building.take("Transformer" if _chooses_adapters(module["type"], place) else _kind(module["type"]), place)
    return building.modules()


class _Building:
    """Modules, collected in their order."""

    def __init__(self, folder: Path):
        self._saved_as = _saved_as(folder)
        self._encoder, self._static = folder, _own_layout(folder)
        self._pooling = MEAN if self._static else None
        self._sparse, self._at = False, "head" if self._static else "token_head"
        self._mask: Path | None = None
        self._score_tokens: ScoreTokens | None = None
        self._queries: Path | None = None
        self._default_route: str | None = None
        self._layers: dict[str, list[HeadLayer]] = {"token_head": [], "head": []}
        self._taken: set[tuple[str, ...]] = set()
        self._tensors: dict[str, tuple[Tensor, ...]] = {}

    def take(self, kind: str, path: Path) -> None:
        """Raises SetupError for a module that is not supported."""
        self._count(kind)
        match kind:
            case "Transformer" | "MLMTransformer":
                self._encoder = path
            case "StaticEmbedding":
                self._encoder, self._pooling, self._at, self._static = path, MEAN, "head", "StaticEmbedding"
            case _ if kind in ROUTERS:
                self._take_routes(path)
            case "Pooling":
                self._pooling, self._at = _pooling(path / "config.json"), "head"
            case "SpladePooling":
                saturation, self._pooling, self._sparse = *splade(**_splade_config(path / "config.json")), True
                self._layers |= saturation
            case "MultiVectorMask":
                self._mask = path
            case "LogitScore":
                self._score_tokens = _score_tokens(path / "config.json")
            case _ if kind != "Dropout":
                self._take_layer(kind, path)

    def _count(self, kind: str) -> None:
        """Raises SetupError for a second encoder or pooling."""
        once = next((names for names in _ONCE if kind in names), None)
        if once in self._taken:
            raise SetupError(f"modules.json: a second {kind} is not supported")
        if once:
            self._taken.add(once)

    def _take_routes(self, path: Path) -> None:
        file = next((path / name for name in _ROUTERS if (path / name).exists()), path / _ROUTERS[0])
        routes = routes_of(read_json(file), str(file))
        self._default_route = routes.default
        self._queries = None if routes.queries is None else inside(path, routes.queries, file.name)
        for kind, place in routes.others:
            self.take(_kind(kind), inside(path, place, file.name))

    def _take_layer(self, kind: str, path: Path) -> None:
        if kind not in ("Dense", "LayerNorm", "Normalize", "FlexibleQuantizer"):
            raise SetupError(f"modules.json: module {short(kind)} is not supported")
        scores = self._saved_as == "CrossEncoder"
        _check_features(path / "config.json", pooled=self._at == "head", scores=scores)
        layers = self._layers[self._at]
        layer, tensors = _head_layer(kind, path, f"{self._at}.{len(layers)}")
        layers.append(layer)
        self._tensors |= tensors

    def modules(self) -> Modules:
        head = list(self._layers["head"])
        while head and head[-1] == Normalize():
            head.pop()
        return Modules(
            encoder=self._encoder,
            token_head=tuple(self._layers["token_head"]),
            pooling=self._pooling,
            head=tuple(head),
            tensors=self._tensors,
            sparse=self._sparse,
            mask=self._mask,
            score_tokens=self._score_tokens,
            saved_as=self._saved_as,
            static=self._static,
            queries=self._queries,
            default_route=self._default_route,
            normalizes=len(head) < len(self._layers["head"]),
        )


def _saved_as(folder: Path) -> str | None:
    """The class of sentence-transformers or PyLate that saved the folder. Raises SetupError for an unknown one."""
    stated: str | None = read_json(folder / "config_sentence_transformers.json").get("model_type")
    if stated is not None and stated not in _CLASSES:
        raise SetupError(
            f"config_sentence_transformers.json: model_type {short(stated)} is not supported; supported: "
            f"{', '.join(_CLASSES)}"
        )
    return stated


def _own_layout(folder: Path) -> Static | None:
    """Model2Vec's own layout has no modules.json."""
    own = not (folder / "modules.json").exists() and read_json(folder / "config.json").get("model_type") == "model2vec"
    return "model2vec" if own else None


def splade(
    pooling_strategy: str = "max", activation_function: str = "relu"
) -> tuple[dict[str, list[HeadLayer]], Pooling]:
    """The layers and the pooling of sentence-transformers' SpladePooling. log1p(relu) is monotonic, so a maximum
    commutes with it: only a sum needs it on every token."""
    saturation: list[HeadLayer] = [Log1pRelu()] * (2 if activation_function == "log1p_relu" else 1)
    if pooling_strategy == "sum":
        return {"token_head": saturation, "head": []}, Pooling(("sum",))
    return {"token_head": [], "head": saturation}, Pooling(("max",))


def _chooses_adapters(path: Any, place: Path) -> bool:
    """Whether a module is jina-embeddings-v3's own, which takes a task and is sentence-transformers' otherwise."""
    return path == "custom_st.Transformer" and bool(read_json(place / "config.json").get("lora_adaptations"))


def _kind(path: str) -> str:
    """The name of a module. Raises SetupError for code of the repository's own, which is not run."""
    if not path.startswith(_LIBRARIES) and path not in _PUBLISHED:
        raise SetupError(f"modules.json: {short(path)} is code of the repository's own, which is not run")
    return path.rsplit(".", 1)[-1]


def _check_features(file: Path, *, pooled: bool, scores: bool) -> None:
    """Raises SetupError for a module whose input is not the output of the layer before it, or whose output is not the
    input of the next."""
    config = read_json(file)
    reads, writes = (config.get(f"module_{way}_name") for way in ("input", "output"))
    if pooled and reads == "token_embeddings":
        raise SetupError(f"{file}: module_input_name {short(reads)} after the pooling is not supported")
    if writes == "scores" and not scores:
        raise SetupError(f"{file}: module_output_name {short(writes)} of a model that is not a CrossEncoder")
    for way, name, known in (("input", reads, _FEATURES), ("output", writes, (*_FEATURES, "scores"))):
        if name is not None and name not in known:
            raise SetupError(f"{file}: module_{way}_name {short(name)} is not supported")


def _score_tokens(file: Path) -> ScoreTokens:
    return ScoreTokens(_require(file, "true_token_id"), read_json(file).get("false_token_id"))


def _splade_config(file: Path) -> dict[str, str]:
    config = {key: read_json(file).get(key) for key in ("pooling_strategy", "activation_function")}
    known = {"pooling_strategy": ("max", "sum", None), "activation_function": ("relu", "log1p_relu", None)}
    for key, value in config.items():
        if value not in known[key]:
            raise SetupError(
                f"{file}: {key} {short(value)} is not supported; supported: {', '.join(filter(None, known[key]))}"
            )
    return {key: value for key, value in config.items() if value is not None}


def _require(file: Path, key: str) -> Any:
    config = read_json(file)
    if key not in config:
        raise SetupError(
            f"{file} lacks `{key}`" if file.exists() else f"{file} is missing; download the checkpoint again"
        )
    return config[key]


def _pooling(file: Path) -> Pooling:
    config = read_json(file)
    if not config:
        raise SetupError(f"{file} is missing, although modules.json names it; download the checkpoint again")
    strange = [flag for flag, on in config.items() if flag.startswith("pooling_mode_") and on and flag not in _FLAGS]
    if strange:
        raise SetupError(f"{file}: {short(strange[0])} is not supported; supported: {', '.join(_FLAGS)}")
    modes = config.get("pooling_mode") or [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    unknown = [mode for mode in modes if mode not in _MODES]
    if unknown:
        raise SetupError(f"{file}: pooling mode {short(unknown[0])} is not supported; supported: {', '.join(_MODES)}")
    return Pooling(tuple(_MODES[mode] for mode in modes), config.get("include_prompt", True))


def _head_layer(kind: str, path: Path, place: str) -> tuple[HeadLayer, dict[str, tuple[Tensor, ...]]]:
    """A module of sentence-transformers, and its tensors under the names of our `place`."""
    match kind:
        case "Dense":
            return _dense(path / "config.json"), _layer_tensors(path, "linear", place)
        case "LayerNorm":
            return LayerNorm(_require(path / "config.json", "dimension")), _layer_tensors(path, "norm", place)
        case "FlexibleQuantizer":
            return Int8Tanh(), {}
        case _:
            return Normalize(), {}


def _dense(file: Path) -> Dense:
    config = read_json(file)
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh").rsplit(".", 1)[-1]
    if name not in _ACTIVATIONS:
        raise SetupError(f"{file}: activation {short(name)} is not supported; supported: {', '.join(_ACTIVATIONS)}")
    inputs, outputs = _require(file, "in_features"), _require(file, "out_features")
    residual = bool(config.get("use_residual"))
    return Dense(inputs, outputs, config.get("bias", True), _ACTIVATIONS[name], residual)


def _layer_tensors(path: Path, module: str, place: str) -> dict[str, tuple[Tensor, ...]]:
    file, pickle = path / "model.safetensors", path / "pytorch_model.bin"
    found = scan(pickle if pickle.exists() and not file.exists() else file)
    return {f"{place}.{name.removeprefix(module + '.')}": (tensor,) for name, tensor in found.items()}


def read_limits(folder: Path) -> Mapping[str, Any]:
    """`max_seq_length` and `do_lower_case` of sentence_bert_config.json, under any of its names."""
    return next((read_json(folder / name) for name in _LENGTH_FILES if (folder / name).exists()), {})


def read_size(folder: Path, key: str) -> int | None:
    """The default size of an answer: `truncate_dim` or `max_active_dims` of config_sentence_transformers.json. Raises
    SetupError."""
    size = read_json(folder / "config_sentence_transformers.json").get(key)
    if size is not None and (type(size) is not int or size < 1):
        raise SetupError(
            f"config_sentence_transformers.json: `{key}` must be a whole number of at least 1, not {short(size)}"
        )
    return size


def special_token(folder: Path, name: str) -> str | None:
    """`mask_token` or `unk_token` of tokenizer_config.json."""
    token = read_json(folder / "tokenizer_config.json").get(name)
    content: str | None = token["content"] if isinstance(token, dict) else token
    return content
