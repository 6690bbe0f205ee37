"""GLiNER (arXiv:2311.08526): an encoder that reads the names of entities before a text, and a head that compares spans
of words with them. Its layout is that of the library `gliner`: gliner_config.json, and one file of weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from bei.architectures.spec import Dense, EncoderSpec
from bei.checkpoint import gliner2
from bei.checkpoint.gliner_head import (
    Gliner,
    Markers,
    Shapes,
    WordPooling,
    head_tensors,
    layers,
    linear,
    marker,
    stored,
)
from bei.checkpoint.modules import read_json
from bei.checkpoint.tensors import Tensor, Tensors
from bei.errors import SetupError, short

CONFIG = "gliner_config.json"
ENCODER = "token_rep_layer.bert_layer.model."
PROJECTION = "token_rep_layer.projection"

_EMBEDDINGS = re.compile(rf"{re.escape(ENCODER)}.*(word_embeddings|tok_embeddings|embed_tokens|shared)\.weight")
_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "span_mode": get_args(Markers),
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


def is_gliner(folder: Path) -> bool:
    """In either version."""
    return (folder / CONFIG).exists() or gliner2.is_gliner2(folder)


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
    if gliner2.is_gliner2(folder):
        return gliner2.encoder_config(folder)
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
    if gliner2.is_gliner2(folder):
        return gliner2.read_gliner2(folder)
    config = read_json(folder / CONFIG)
    sizes = {key: _size(config, key, default, most) for key, (default, most) in _SIZES.items()}
    count = config.get("num_rnn_layers", 1)
    if type(count) is not int or not 0 <= count <= _MOST_LAYERS:
        raise SetupError(f"{CONFIG}: num_rnn_layers must be a whole number up to {_MOST_LAYERS}, not {short(count)}")
    mode, width = config.get("span_mode", "markerV0"), sizes["hidden_size"]
    if count and width % 2:
        raise SetupError(f"{CONFIG}: hidden_size {width} must be even, for an RNN in two directions")
    shapes = {**_rnn(width, count), **(_words(width) if mode == "token_level" else _spans(width, mode))}
    own = {name: of for name, of in stored(folder).items() if not name.startswith((ENCODER, PROJECTION))}
    mark, separator = _token(config, "ent_token", "<<ENT>>"), _token(config, "sep_token", "<<SEP>>")
    return Gliner(
        version=1,
        span_mode=mode,
        max_width=sizes["max_width"],
        max_words=sizes["max_len"],
        pooling=config.get("subtoken_pooling", "first"),
        before=(),
        mark=mark,
        after=(separator,),
        added=("[FLERT]", mark, separator),
        tensors=head_tensors(own, shapes, folder, CONFIG) if stored(folder) else Tensors({}),
        first_of_label=not config.get("embed_ent_token", True),
        rnn_layers=count,
        mark_id=_mark_id(config),
    )


def gliner_tokens(folder: Path) -> int:
    """The tokens for which a text of the most words, and its labels, have room, where positions set no limit."""
    default, most = _SIZES["max_len"]
    if gliner2.is_gliner2(folder):
        return _TOKENS_A_WORD * gliner2.WORDS
    return _TOKENS_A_WORD * _size(read_json(folder / CONFIG), "max_len", default, most)


def projection(folder: Path, spec: EncoderSpec) -> Dense | None:
    """The layer from the encoder's width to the head's; None where they are equal."""
    if gliner2.is_gliner2(folder):
        return None
    default, most = _SIZES["hidden_size"]
    width = _size(read_json(folder / CONFIG), "hidden_size", default, most)
    return None if width == spec.hidden_size else Dense(spec.hidden_size, width, True, "identity")


def encoder_tensors(folder: Path, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the encoder under its own names, and those of the projection."""
    own = gliner2.ENCODER if gliner2.is_gliner2(folder) else ENCODER
    return {name.removeprefix(own): of for name, of in stored.items() if name.startswith((own, PROJECTION))}


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
    found = (of.shape[0] for name, of in stored(folder).items() if _EMBEDDINGS.fullmatch(name) and of.shape)
    return next(found, None)


# -- tensors of the head: shapes by the library's names -------------------------------------------------------------


def _rnn(width: int, count: int) -> Shapes:
    shapes: Shapes = {}
    for place in (f"_l{layer}{way}" for layer in range(count) for way in ("", "_reverse")):
        shapes |= {
            f"rnn.lstm.weight_ih{place}": (2 * width, width),
            f"rnn.lstm.weight_hh{place}": (2 * width, width // 2),
        }
        shapes |= {f"rnn.lstm.bias_{kind}{place}": (2 * width,) for kind in ("ih", "hh")}
    return shapes


def _spans(width: int, mode: str) -> Shapes:
    place, label = "span_rep_layer.span_rep_layer", layers("prompt_rep_layer", (width, 4 * width, width), 3)
    if mode == "markerV0":
        return {**marker(place, width), **label}
    ends = (layers(f"{place}.project_{end}", (width, 2 * width, width), 3) for end in ("start", "end"))
    return {**next(ends), **next(ends), **linear(f"{place}.out_project", width, 2 * width), **label}


def _words(width: int) -> Shapes:
    return {
        **linear("scorer.proj_token", 2 * width, width),
        **linear("scorer.proj_label", 2 * width, width),
        **layers("scorer.out_mlp", (3 * width, 4 * width, 3), 3),
    }
