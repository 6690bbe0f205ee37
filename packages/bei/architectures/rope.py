"""Rotary position embeddings as data: config.json's base and scaling → the frequency of each pair.

Formulas: transformers, modeling_rope_utils.py; YaRN: arXiv:2309.00071; LongRoPE: arXiv:2402.13753; `ntk`: Alibaba's GTE
(NTKScalingRotaryEmbedding).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bei.architectures.config import read
from bei.architectures.positions import DynamicScaling, LongFrequencies, Rotary
from bei.errors import SetupError, one_line, short

_Config = Mapping[str, Any]


def rotary(
    config: _Config,
    head_size: int,
    layer_type: str | None = None,
    base: float | None = None,
    partial: float | None = None,
) -> Rotary:
    """The rotary embedding of a config.json: of transformers 5 (`rope_parameters`, per `layer_type` if they differ), of
    earlier versions (`rope_theta`, `rope_scaling`), or of both. `base` overrides the default of `rope_theta`.
    `partial` is the share of a head that is rotated where no `partial_rotary_factor` says it; None for an architecture
    that rotates heads whole. Raises SetupError for a share or a kind of scaling that is not supported."""
    stated = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if layer_type is not None:
        stated = _of_layer(config, stated, layer_type)
    stated = {"rope_theta": base or config.get("rope_theta", 10_000.0), **stated}
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind not in _KINDS:
        raise SetupError(f"config.json: rope scaling {short(kind)} is not supported; supported: {', '.join(_KINDS)}")
    size = int(head_size * _share(stated.get("partial_rotary_factor", config.get("partial_rotary_factor")), partial))
    if size % 2:
        raise SetupError(
            f"config.json: of a head's {head_size} numbers {size} are rotated, which is not an even number"
        )
    try:
        return _KINDS[kind](config, stated, float(stated["rope_theta"]), size)
    except KeyError as exc:
        raise SetupError(f"config.json: rope scaling {short(kind)} lacks {one_line(exc)}") from None


def _of_layer(config: _Config, stated: _Config, layer_type: str) -> _Config:
    """The part of a type of layer; `rope_scaling`, of earlier versions, has no parts. transformers passes over
    `rope_parameters` without parts, which no version of it writes for these architectures."""
    if not config.get("rope_scaling") and stated and not any(isinstance(of, Mapping) for of in stated.values()):
        raise SetupError("config.json: rope_parameters must have a part for each type of layer, as `full_attention`")
    part = stated.get(layer_type)
    return part if isinstance(part, Mapping) else stated


def _share(stated: Any, default: float | None) -> float:
    """transformers ignores the key, or fails, where the architecture rotates heads whole; others obey it."""
    if default is None and stated not in (None, 1.0):
        raise SetupError(f"config.json: partial_rotary_factor {short(stated)}: this architecture rotates heads whole")
    if stated is None:
        return 1.0 if default is None else default
    share: float = stated
    return share


def longest(config: _Config) -> int:
    """max_position_embeddings, or the longer length to which a scaling extends it."""
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = stated.get("rope_type", stated.get("type"))
    positions: int = read(config, "max_position_embeddings")
    if kind in ("dynamic", "yarn") and stated.get("factor"):
        return max(positions, int(_trained(config, stated) * stated["factor"]))
    return positions


def _frequencies(base: float, size: int) -> np.ndarray:
    return base ** -(np.arange(0, size, 2, dtype=np.float64) / size)


def _rotary(frequencies: np.ndarray, scale: float = 1.0, dynamic: DynamicScaling | None = None) -> Rotary:
    return Rotary(_floats(frequencies), scale, dynamic)


def _floats(frequencies: np.ndarray) -> tuple[float, ...]:
    return tuple(frequencies.astype(np.float32).tolist())


def _default(config: _Config, stated: _Config, base: float, size: int) -> Rotary:
    return _rotary(_frequencies(base, size))


def _linear(config: _Config, stated: _Config, base: float, size: int) -> Rotary:
    return _rotary(_frequencies(base, size) / stated["factor"])


def _dynamic(config: _Config, stated: _Config, base: float, size: int) -> Rotary:
    scaling = DynamicScaling(base, stated["factor"], _trained(config, stated))
    return _rotary(_frequencies(base, size), dynamic=scaling)


def _llama3(config: _Config, stated: _Config, base: float, size: int) -> Rotary:
    """Low frequencies are divided by the factor, high ones are kept, and those between are interpolated."""
    frequencies = _frequencies(base, size)
    low, high = stated["low_freq_factor"], stated["high_freq_factor"]
    rotations = stated["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = np.clip((rotations - low) / (high - low), 0, 1)
    return _rotary(frequencies * (kept + (1 - kept) / stated["factor"]))


def _yarn(config: _Config, stated: _Config, base: float, size: int) -> Rotary:
    trained = _trained(config, stated)
    factor = stated.get("factor") or config["max_position_embeddings"] / trained

    def pair(rotations: float) -> float:
        """The index of the pair that makes so many rotations within the trained length."""
        return size * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair(stated.get("beta_fast") or 32), pair(stated.get("beta_slow") or 1)
    if stated.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    ramp = np.clip((np.arange(size // 2) - first) / max(last - first, 0.001), 0, 1)
    frequencies = _frequencies(base, size)
    return _rotary(frequencies * (1 - ramp + ramp / factor), _yarn_scale(stated, factor))


def _yarn_scale(stated: _Config, factor: float) -> float:
    given: float | None = stated.get("attention_factor")
    if given is not None:
        return given

    def scale(strength: float) -> float:
        return 0.1 * strength * math.log(factor) + 1 if factor > 1 else 1.0

    if stated.get("mscale") and stated.get("mscale_all_dim"):
        return scale(stated["mscale"]) / scale(stated["mscale_all_dim"])
    return scale(1.0)


def _ntk(config: _Config, stated: _Config, base: float, size: int) -> Rotary:
    factor, mixed = stated["factor"], stated.get("mixed_b")
    if mixed is None:
        return _rotary(_frequencies(base * factor, size) / factor ** (2 / size))
    strength = math.log(factor) / (size / 2) ** mixed
    return _rotary(_frequencies(base, size) / np.exp(strength * np.arange(1, size // 2 + 1) ** mixed))


def _longrope(config: _Config, stated: _Config, base: float, size: int) -> Rotary:
    trained = _trained(config, stated)
    factor = stated.get("factor") or config["max_position_embeddings"] / trained
    scale = stated.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    short, long = (_divided(base, size, stated, f"{kind}_factor") for kind in ("short", "long"))
    return Rotary(_floats(short), scale, LongFrequencies(_floats(long), trained))


def _divided(base: float, size: int, stated: _Config, key: str) -> np.ndarray:
    factors = np.array(stated[key], np.float64)
    if factors.shape != (size // 2,):
        raise SetupError(f"config.json: {key} of the rope scaling must be a list of {size // 2} numbers")
    return _frequencies(base, size) / factors


def _trained(config: _Config, stated: _Config) -> int:
    """The length of the training. As in transformers, config.json's own value comes before that of the scaling."""
    key = "original_max_position_embeddings"
    positions: int = config.get(key) or stated.get(key) or config["max_position_embeddings"]
    return positions


_KINDS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "ntk": _ntk,
    "longrope": _longrope,
    "su": _longrope,
}
