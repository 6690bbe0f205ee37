"""GLiNER (arXiv:2311.08526): an encoder that reads the names of entities before a text, and a head that compares spans
of words with them. Its layout is that of the library `gliner`: gliner_config.json, and one file of weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bei.architectures.spec import Dense, EncoderSpec
from bei.checkpoint.modules import read_json
from bei.checkpoint.tensors import Tensor, Tensors
from bei.checkpoint.weights import WEIGHTS, stored_tensors
from bei.errors import SetupError, short

CONFIG = "gliner_config.json"
ENCODER = "token_rep_layer.bert_layer.model."
PROJECTION = "token_rep_layer.projection"
WordPooling = Literal["first", "last", "mean", "max"]
SpanMode = Literal["marker", "markerV0", "token_level"]

_EMBEDDINGS = re.compile(rf"{re.escape(ENCODER)}.*(word_embeddings|tok_embeddings|embed_tokens|shared)\.weight")
_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "span_mode": get_args(SpanMode),
    "subtoken_pooling": get_args(WordPooling),
    "words_splitter_type": ("whitespace",),
    "fuse_layers": (False,),
    "post_fusion_schema": ("",),
    "precomputed_prompts_mode": (False,),
    "represent_spans": (False,),
    "model_type": ("gliner", "gliner_base", "gliner_uni_encoder_span", "gliner_uni_encoder_token"),
}
_REFUSED = {
    "labels_encoder": "the model reads labels by a second encoder, and one is served",
    "labels_decoder": "the model writes labels by a decoder, which no engine here computes",
    "relations_layer": "the model finds relations between entities, which is not served",
    "span_encoder_config": "layers over words are not supported",
}
_SIZES = {"hidden_size": (512, 1 << 16), "max_width": (12, 1 << 10), "max_len": (384, 1 << 14)}
_MOST_LAYERS = 16
_TOKENS_A_WORD = 4
_LONGEST_NAME = 1024


@dataclass(frozen=True)
class Gliner:
    """`span_mode` is the kind of the head: it scores spans of at most `max_width` words, or with `token_level` words.
    A text is read in windows of `max_words`. The state of a word is that of its tokens by `pooling`. Before each label
    stands the token `mark`, and after the labels `separator`; a label's state is its mark's, or with `first_of_label`
    that of the token after it. `tensors` are the head's, under the library's names. `mark_id` is the mark's, if the
    checkpoint states it."""

    span_mode: SpanMode
    max_width: int
    max_words: int
    pooling: WordPooling
    mark: str
    separator: str
    first_of_label: bool
    rnn_layers: int
    tensors: Tensors
    mark_id: int | None = None


def is_gliner(folder: Path) -> bool:
    return (folder / CONFIG).exists()


def base_of(folder: Path) -> str | None:
    """The name of the encoder, where the checkpoint itself lacks the encoder's config or a tokenizer."""
    config = read_json(folder / CONFIG)
    has_encoder = isinstance(config.get("encoder_config"), dict) or (folder / "config.json").exists()
    if not config or (has_encoder and any((folder / f"tokenizer{part}.json").exists() for part in ("", "_config"))):
        return None
    name = config.get("model_name")
    return name if isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME and "\0" not in name else None


def encoder_config(folder: Path) -> Mapping[str, Any]:
    """The config.json of the encoder. Raises SetupError for a kind of GLiNER that is not served."""
    config = read_json(folder / CONFIG)
    _check(config)
    stated = config.get("encoder_config")
    if isinstance(stated, dict):
        return {"model_type": "deberta-v2", **stated, "architectures": None, "id2label": None}
    beside = read_json(folder / "config.json")
    if not beside:
        raise SetupError(
            f"{CONFIG} has no encoder_config: put config.json and the tokenizer of {short(config.get('model_name'))} "
            "beside it"
        )
    rows = config.get("vocab_size", -1)
    rows = rows if type(rows) is int and rows > 0 else _stored_rows(folder)
    return {**beside, "architectures": None, "id2label": None, **({"vocab_size": rows} if rows else {})}


def read_gliner(folder: Path) -> Gliner:
    """The head; without tensors, if the folder has no weights. Raises SetupError for one that does not fit."""
    config, stored = read_json(folder / CONFIG), _stored(folder)
    sizes = {key: _size(config, key, default, most) for key, (default, most) in _SIZES.items()}
    layers = config.get("num_rnn_layers", 1)
    if type(layers) is not int or not 0 <= layers <= _MOST_LAYERS:
        raise SetupError(f"{CONFIG}: num_rnn_layers must be a whole number up to {_MOST_LAYERS}, not {short(layers)}")
    mode, width = config.get("span_mode", "markerV0"), sizes["hidden_size"]
    if layers and width % 2:
        raise SetupError(f"{CONFIG}: hidden_size {width} must be even, for an RNN in two directions")
    shapes = {**_rnn(width, layers), **(_scorer(width) if mode == "token_level" else _marker(width, mode))}
    return Gliner(
        span_mode=mode,
        max_width=sizes["max_width"],
        max_words=sizes["max_len"],
        pooling=config.get("subtoken_pooling", "first"),
        mark=_token(config, "ent_token", "<<ENT>>"),
        separator=_token(config, "sep_token", "<<SEP>>"),
        first_of_label=not config.get("embed_ent_token", True),
        rnn_layers=layers,
        tensors=Tensors(_head_of(folder, stored, shapes) if stored else {}),
        mark_id=_mark_id(config),
    )


def gliner_tokens(folder: Path) -> int:
    """The tokens for which a text of the most words, and its labels, have room, where positions set no limit."""
    default, most = _SIZES["max_len"]
    return _TOKENS_A_WORD * _size(read_json(folder / CONFIG), "max_len", default, most)


def projection(folder: Path, spec: EncoderSpec) -> Dense | None:
    """The layer from the encoder's width to the head's; None where they are equal."""
    default, most = _SIZES["hidden_size"]
    width = _size(read_json(folder / CONFIG), "hidden_size", default, most)
    return None if width == spec.hidden_size else Dense(spec.hidden_size, width, True, "identity")


def encoder_tensors(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the encoder under its own names, and those of the projection."""
    return {name.removeprefix(ENCODER): of for name, of in stored.items() if name.startswith((ENCODER, PROJECTION))}


def _check(config: Mapping[str, Any]) -> None:
    for key, why in _REFUSED.items():
        if config.get(key) is not None:
            raise SetupError(f"{CONFIG}: {key} {short(config[key])}: {why}")
    for key, known in _SUPPORTED.items():
        if config.get(key) is not None and config[key] not in known:
            names = ", ".join(map(str, known))
            raise SetupError(f"{CONFIG}: {key} {short(config[key])} is not supported; supported: {names}")


def _size(config: Mapping[str, Any], key: str, default: int, most: int) -> int:
    value = config.get(key, default)
    if type(value) is not int or not 1 <= value <= most:
        raise SetupError(f"{CONFIG}: `{key}` must be a whole number from 1 to {most}, not {short(value)}")
    return value


def _token(config: Mapping[str, Any], key: str, default: str) -> str:
    token = config.get(key, default)
    if not isinstance(token, str) or not 0 < len(token) <= 64:
        raise SetupError(f"{CONFIG}: `{key}` must be a token, not {short(token)}")
    return token


def _mark_id(config: Mapping[str, Any]) -> int | None:
    """Raises SetupError for an id that is none."""
    id = config.get("class_token_index", -1)
    if type(id) is not int:
        raise SetupError(f"{CONFIG}: class_token_index must be a whole number, not {short(id)}")
    return id if id >= 0 else None


def _stored_rows(folder: Path) -> int | None:
    """The rows of the table of tokens; None without weights."""
    found = (of.shape[0] for name, of in _stored(folder).items() if _EMBEDDINGS.fullmatch(name) and of.shape)
    return next(found, None)


def _stored(folder: Path) -> Mapping[str, Tensor]:
    """Empty without weights, which a look at the JSON files alone does not need."""
    files = (folder / f"{name}{ending}" for name in WEIGHTS for ending in ("", ".index.json"))
    return stored_tensors(folder) if any(file.exists() for file in files) else {}


# -- tensors of the head: shapes by the library's names -------------------------------------------------------------


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _two(name: str, inputs: int, outputs: int, inner: int) -> dict[str, tuple[int, ...]]:
    """A linear layer, an activation, dropout, and another linear layer."""
    return {**_linear(f"{name}.0", inner, inputs), **_linear(f"{name}.3", outputs, inner)}


def _rnn(width: int, layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        for way in ("", "_reverse"):
            place = f"_l{layer}{way}"
            shapes |= {f"rnn.lstm.{kind}{place}": (2 * width, size) for kind, size in _rnn_inputs(width)}
            shapes |= {f"rnn.lstm.bias_{kind}{place}": (2 * width,) for kind in ("ih", "hh")}
    return shapes


def _rnn_inputs(width: int) -> tuple[tuple[str, int], ...]:
    return ("weight_ih", width), ("weight_hh", width // 2)


def _marker(width: int, mode: str) -> dict[str, tuple[int, ...]]:
    place, inner = "span_rep_layer.span_rep_layer", 4 * width if mode == "markerV0" else 2 * width
    ends = {**_two(f"{place}.project_start", width, width, inner), **_two(f"{place}.project_end", width, width, inner)}
    out = f"{place}.out_project"
    joined = _two(out, 2 * width, width, inner) if mode == "markerV0" else _linear(out, width, 2 * width)
    return {**ends, **joined, **_two("prompt_rep_layer", width, width, 4 * width)}


def _scorer(width: int) -> dict[str, tuple[int, ...]]:
    return {
        **_linear("scorer.proj_token", 2 * width, width),
        **_linear("scorer.proj_label", 2 * width, width),
        **_two("scorer.out_mlp", 3 * width, 3, 4 * width),
    }


def _head_of(
    folder: Path, stored: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[Tensor, ...]]:
    own = {name: of for name, of in stored.items() if not name.startswith((ENCODER, PROJECTION))}
    missing, left = sorted(shapes.keys() - own.keys()), sorted(own.keys() - shapes.keys())
    for names, what in ((missing, "tensors missing"), (left, f"tensors that {CONFIG} does not account for")):
        if names:
            raise SetupError(f"{folder}: {what}: {short(', '.join(names))}")
    for name, shape in shapes.items():
        if own[name].shape != shape:
            raise SetupError(f"{own[name].file}: {name} has shape {own[name].shape}, {CONFIG} says {shape}")
        if own[name].dtype not in ("float32", "float16", "bfloat16"):
            raise SetupError(f"{own[name].file}: {name} is {own[name].dtype}; use float32, float16 or bfloat16")
    return {name: (own[name],) for name in shapes}
