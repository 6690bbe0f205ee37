"""Metrics as their text shows them."""

import re
from collections.abc import Callable

from bei.metrics import Metrics

TIMES = {"total": 0.02, "tokenization": 0.001, "queue": 0.01, "inference": 0.008}


def exposed(metrics: Metrics) -> dict[str, float]:
    """`name{labels}` → value of every sample, as in the text."""
    lines = (line for line in metrics.exposition().decode().splitlines() if line.startswith(("te_", "bei_")))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def gained(metrics: Metrics, run: Callable[[], None]) -> dict[str, float]:
    before = exposed(metrics)
    run()
    after = exposed(metrics)
    return {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}


def values_of(metrics: Metrics, name: str, label: str) -> dict[str, float]:
    """The values of one metric by one of its labels."""
    found = {re.search(rf'^{name}{{.*?{label}="([^"]*)"', sample): value for sample, value in exposed(metrics).items()}
    return {match[1]: value for match, value in found.items() if match}
