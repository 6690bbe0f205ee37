"""GLiNER2 (arXiv:2507.18546): one encoder that reads a schema before a text. Its entities are served; the layout is of
the library `gliner2`: config.json of the model, encoder_config/config.json, and one file of weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from bei.checkpoint.gliner_head import Counting, Gliner, Shapes, head_tensors, layers, linear, marker, stored
from bei.checkpoint.modules import read_json
from bei.checkpoint.tensors import Tensors
from bei.errors import SetupError, short

ENCODER = "encoder."
WORDS = 384  # of a window: the library's extract_long has as many by default
COUNTS = 20  # of a kind of entity in a text; with the first of them it has none
INNER, HEADS, TRANSFORMER_LAYERS = 128, 4, 2  # of count_lstm_v2

_OF_ENCODER = "encoder_config/config.json"
_TOKENS = ("[SEP_STRUCT]", "[SEP_TEXT]", "[P]", "[C]", "[E]", "[R]", "[L]", "[EXAMPLE]", "[OUTPUT]", "[DESCRIPTION]")
_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "architecture": ("span",),
    "token_pooling": ("first", "mean", "max"),
    "counting_layer": get_args(Counting),
}
_MOST_WIDTH = 1 << 10


def is_gliner2(folder: Path) -> bool:
    return bool(read_json(folder / "config.json").get("model_type") == "extractor")


def encoder_config(folder: Path) -> Mapping[str, Any]:
    """The config.json of the encoder. Raises SetupError for a kind of GLiNER2 that is not served."""
    config, encoder = read_json(folder / "config.json"), read_json(folder / _OF_ENCODER)
    for key, known in _SUPPORTED.items():
        if config.get(key) is not None and config[key] not in known:
            names = ", ".join(map(str, known))
            raise SetupError(f"config.json: {key} {short(config[key])} is not supported; supported: {names}")
    if not encoder:
        raise SetupError(f"{folder / _OF_ENCODER} is missing; download the checkpoint again")
    tables = (
        of.shape[0] for name, of in stored(folder).items() if name.endswith("word_embeddings.weight") and of.shape
    )
    rows = next(tables, None)
    return {**encoder, "architectures": None, "id2label": None, **({"vocab_size": rows} if rows else {})}


def read_gliner2(folder: Path) -> Gliner:
    """The head; without tensors, if the folder has no weights. Raises SetupError for one that does not fit."""
    config, tensors = read_json(folder / "config.json"), stored(folder)
    width = read_json(folder / _OF_ENCODER).get("hidden_size")
    kind: Counting = "count_lstm_v2" if config.get("counting_layer") == "count_lstm_v2" else "count_lstm"
    if type(width) is not int or not 1 <= width <= 1 << 16:
        raise SetupError(f"{_OF_ENCODER}: `hidden_size` must be a whole number, not {short(width)}")
    own = {name: of for name, of in tensors.items() if not name.startswith(ENCODER)}
    return Gliner(
        version=2,
        span_mode=kind,
        max_width=_max_width(config),
        max_words=WORDS,
        pooling=config.get("token_pooling") or "first",
        before=("(", "[P]", "entities", "("),
        mark="[E]",
        after=(")", ")", "[SEP_TEXT]"),
        added=_TOKENS,
        tensors=head_tensors(own, _shapes(width, kind), folder, "config.json") if tensors else Tensors({}),
    )


def _max_width(config: Mapping[str, Any]) -> int:
    head = config.get("span_head") or {}
    if not isinstance(head, dict) or head.get("span_mode", "markerV0") != "markerV0":
        raise SetupError(f"config.json: span_head {short(head)} is not supported; supported: markerV0")
    width = head.get("max_width") or config.get("max_width") or 8
    if type(width) is not int or not 1 <= width <= _MOST_WIDTH:
        raise SetupError(f"config.json: `max_width` must be a whole number from 1 to {_MOST_WIDTH}, not {short(width)}")
    return width


def _shapes(width: int, kind: str) -> Shapes:
    place = "count_embed"
    return {
        **marker("span_rep.span_rep_layer", width),
        **layers("classifier", (width, 2 * width, 1), 2),
        **layers("count_pred", (width, 2 * width, COUNTS), 2),
        f"{place}.pos_embedding.weight": (COUNTS, width),
        **{f"{place}.gru.weight_{of}_l0": (3 * width, width) for of in ("ih", "hh")},
        **{f"{place}.gru.bias_{of}_l0": (3 * width,) for of in ("ih", "hh")},
        **(_transformer(f"{place}.transformer", width) if kind == "count_lstm_v2" else _projector(place, width)),
    }


def _projector(place: str, width: int) -> Shapes:
    return layers(f"{place}.projector", (2 * width, 4 * width, width), 2)


def _transformer(place: str, width: int) -> Shapes:
    shapes = {**linear(f"{place}.in_projector", INNER, width)}
    for layer in (f"{place}.transformer.layers.{i}" for i in range(TRANSFORMER_LAYERS)):
        shapes |= {
            f"{layer}.self_attn.in_proj_weight": (3 * INNER, INNER),
            f"{layer}.self_attn.in_proj_bias": (3 * INNER,),
        }
        shapes |= linear(f"{layer}.self_attn.out_proj", INNER, INNER)
        shapes |= {**linear(f"{layer}.linear1", 2 * INNER, INNER), **linear(f"{layer}.linear2", INNER, 2 * INNER)}
        shapes |= {f"{layer}.norm{i}.{part}": (INNER,) for i in (1, 2) for part in ("weight", "bias")}
    return {**shapes, **layers(f"{place}.out_projector", (INNER + width, width, width, width), 2)}
