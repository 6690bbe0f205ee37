"""The figures of servers that took turns: a table, JSON, and ratios to the first server."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bei.bench.load import Figures, Load
from bei.errors import printable

Rounds = Mapping[Load, Mapping[str, Sequence[Figures]]]
"""Of each load, of each server by name, the figures of each round."""
_FIELDS = ("requests_per_second", "texts_per_second", "p50", "p90", "p99", "mean")


def median(rounds: Sequence[Figures], field: str) -> float | None:
    """Over the rounds that have one."""
    found = [value for one in rounds if (value := getattr(one, field)) is not None]
    return float(np.median(found)) if found else None


def ratio(ours: Sequence[Figures], first: Sequence[Figures]) -> float | None:
    """The median over rounds of the requests a second, divided by those of the first server in the same round."""
    pairs = zip(ours, first, strict=True)
    found = [a.requests_per_second / b.requests_per_second for a, b in pairs if b.requests_per_second]
    return float(np.median(found)) if found else None


def errors(rounds: Sequence[Figures]) -> Mapping[str, int]:
    return dict(sum((Counter(one.errors) for one in rounds), Counter[str]()))


def as_json(found: Rounds) -> list[dict[str, Any]]:
    """An object for each load and server: medians over rounds, and each round."""
    return [
        {
            "load": asdict(load),
            "server": name,
            **{field: median(rounds, field) for field in _FIELDS},
            "ratio": ratio(rounds, next(iter(servers.values()))),
            "errors": errors(rounds),
            "rounds": [asdict(one) for one in rounds],
        }
        for load, servers in found.items()
        for name, rounds in servers.items()
    ]


def table(found: Rounds) -> str:
    width = max(len(name) for servers in found.values() for name in servers)
    columns = ("requests/s", "ratio", "texts/s", "p50 ms", "p90 ms", "p99 ms")
    lines = [f"{'load':>12}  {'server':{width}}" + "".join(f" {column:>10}" for column in columns) + "  errors"]
    for load, servers in found.items():
        first = next(iter(servers.values()))
        for name, rounds in servers.items():
            cells = [_cell(median(rounds, "requests_per_second")), _cell(ratio(rounds, first), "x")]
            cells += [_cell(median(rounds, field)) for field in ("texts_per_second", "p50", "p90", "p99")]
            told = ", ".join(f"{count} {kind}" for kind, count in errors(rounds).items()) or "0"
            lines.append(printable(f"{load!s:>12}  {name:{width}} {' '.join(cells)}  {told}"))
    return "\n".join(lines)


def _cell(value: float | None, unit: str = "") -> str:
    if value is None:
        return f"{'-':>10}"
    return f"{value:.2f}{unit}".rjust(10) if value < 100 else f"{value:.0f}{unit}".rjust(10)
