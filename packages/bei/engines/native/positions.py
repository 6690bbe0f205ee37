"""The vectors of relative positions that attention multiplies with queries and keys: they depend on no text, so a plan
has them as the matrices of each layer project them."""

from collections.abc import Callable, Iterator

import numpy as np

from bei.architectures.shapes import position_projections
from bei.architectures.spec import Disentangled, EncoderSpec
from bei.engines.relative_vectors import bucket, sinusoids

Exact = Callable[[str], np.ndarray]


def vectors(spec: EncoderSpec, exact: Exact) -> Iterator[tuple[str, np.ndarray]]:
    """float32[2 * buckets, heads * head_size] for each layer and kind. `exact` reads a tensor in float32."""
    of = spec.relative_bias
    if not isinstance(of, Disentangled):
        return
    table = _table(spec, of, exact)
    for i in range(len(spec.layers)):
        for part, (weight, bias) in _matrices(spec, of, i, exact).items():
            yield f"layers.{i}.{part}", np.ascontiguousarray(table @ weight.T + bias, np.float32)
        if of.segments:
            yield from _with_segments(spec, of, i, table, exact)


def rows_by_distance(spec: EncoderSpec) -> np.ndarray | None:
    """int32[2 * max_tokens - 1]: the row of the vectors for each distance of a query from a key."""
    of = spec.relative_bias
    if not isinstance(of, Disentangled):
        return None
    return bucket(np.arange(1 - spec.max_tokens, spec.max_tokens), of).astype(np.int32)


def _table(spec: EncoderSpec, of: Disentangled, exact: Exact) -> np.ndarray:
    if of.sinusoids:
        return sinusoids(of, spec.hidden_size)
    table = exact("relative_positions.weight")
    if of.norm is None:
        return table
    centered = table - table.mean(-1, keepdims=True)
    normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + np.float32(of.norm.eps))
    found: np.ndarray = normed * exact("relative_positions.norm.weight") + exact("relative_positions.norm.bias")
    return found


def _matrices(spec: EncoderSpec, of: Disentangled, i: int, exact: Exact) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The weight and bias of the projection of each kind that the spec has."""
    if of.own_projections:
        ours = {"position_query": "position_queries", "position_key": "position_keys"}
        names = {ours[part]: f"layers.{i}.{part}" for part in position_projections(spec)}
        return {part: (exact(f"{name}.weight"), exact(f"{name}.bias")) for part, name in names.items()}
    weight, bias = exact(f"layers.{i}.qkv.weight"), exact(f"layers.{i}.qkv.bias")
    queries, keys = slice(0, spec.query_size), slice(spec.query_size, spec.query_size + spec.key_size)
    used = {
        **({"position_queries": queries} if of.position_to_content else {}),
        **({"position_keys": keys} if of.content_to_position else {}),
    }
    return {part: (weight[rows], bias[rows]) for part, rows in used.items()}


def _with_segments(
    spec: EncoderSpec, of: Disentangled, i: int, table: np.ndarray, exact: Exact
) -> Iterator[tuple[str, np.ndarray]]:
    """Queries come with their bias for contents; the others' differences from it make biases of scores. A vector that
    all keys share changes no share of theirs, so the difference of the two segments' vectors is enough."""
    layer, heads = f"layers.{i}", (spec.heads, spec.head_size)
    content = exact(f"{layer}.qkv.bias")[: spec.query_size]
    of_position = (exact(f"{layer}.position_bias") - content).reshape(heads)
    of_segment = (exact(f"{layer}.segment_bias") - content).reshape(heads)
    same, other = exact(f"{layer}.segments").reshape(2, *heads)
    keys = (table @ exact(f"{layer}.position_key.weight").T).reshape(-1, *heads)
    by_row = np.einsum("rhd,hd->hr", keys, of_position) * np.float32(spec.attention_scale)
    rows = rows_by_distance(spec)
    yield f"{layer}.bias_by_distance", np.ascontiguousarray(by_row[:, rows[::-1]] if rows is not None else by_row)
    yield f"{layer}.segments", np.ascontiguousarray(other - same)
    yield f"{layer}.segment_bias", np.ascontiguousarray(((other - same) * of_segment).sum(-1))
