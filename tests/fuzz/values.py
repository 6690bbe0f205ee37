"""Hostile content of files and requests: values of every kind and size anywhere in a well-formed value, and well-formed
bytes with some of them changed."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

DEEP = "@deep@"
"""A placeholder for 20,000 nested lists: Python's own writers go no deeper than a thousand."""

_NUMBERS = [0, 1, -1, 2, 7, 255, 10**9, 2**31 - 1, 2**31, 2**63, 10**30, -(10**30), 0.0, -0.5, 1e-300, 1e300]
_TEXTS = ["", "a", "the cat", "../../../etc/passwd", "/etc/passwd", "a\0b", "\n", "é", "x" * 5000, "None", "1", DEEP]
leaves = st.one_of(
    st.none(), st.booleans(), st.sampled_from([*_NUMBERS, float("nan"), float("inf")]), st.sampled_from(_TEXTS)
)
values = st.recursive(
    leaves | st.text(max_size=8) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def paths(tree: Any, here: tuple = ()) -> list[tuple]:
    """The paths of every value in a tree of dicts and lists; of a long list only its first items."""
    found = [here]
    if isinstance(tree, dict):
        found += [path for key in list(tree)[:60] for path in paths(tree[key], (*here, key))]
    elif isinstance(tree, list):
        found += [path for i in range(min(len(tree), 6)) for path in paths(tree[i], (*here, i))]
    return found


def mutated(tree: Any, most: int = 3) -> st.SearchStrategy[Any]:
    """`tree` with some of its values replaced, removed, or keys added."""
    places = [path for path in paths(tree) if path]
    if not places:
        return values
    change = st.tuples(st.sampled_from(places), st.sampled_from(["put", "remove", "rename"]), values)
    return st.lists(change, min_size=1, max_size=most).map(lambda changes: _changed(tree, changes)) | values


def _changed(tree: Any, changes: list[tuple[tuple, str, Any]]) -> Any:
    tree = copy.deepcopy(tree)
    for path, how, value in changes:
        at = tree
        try:
            for step in path[:-1]:
                at = at[step]
            if how == "put":
                at[path[-1]] = value
            else:
                was = at.pop(path[-1])
                if how == "rename":
                    at[str(value)[:20]] = was
        except (LookupError, TypeError, AttributeError):
            continue  # an earlier change removed its place
    return tree


def as_json(value: Any) -> bytes:
    text = json.dumps(value).replace(f'"{DEEP}"', "[" * 20_000 + "]" * 20_000)
    return text.encode("utf-8", "surrogatepass")


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """`content` with bytes replaced, cut off or doubled."""
    at = st.integers(0, max(0, len(content) - 1))
    change = st.tuples(at, st.sampled_from(["put", "cut", "double"]), st.binary(min_size=1, max_size=8))

    def apply(changes: list[tuple[int, str, bytes]]) -> bytes:
        changed = bytearray(content)
        for place, how, new in changes:
            if how == "put":
                changed[place : place + len(new)] = new
            elif how == "cut":
                del changed[place:]
            else:
                changed[place:place] = changed[place : place + 512]
        return bytes(changed)

    return st.lists(change, max_size=4).map(apply)
