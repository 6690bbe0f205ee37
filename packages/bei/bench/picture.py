"""The curve of throughput and latency, one line for each server, as PNG or SVG."""

from collections.abc import Sequence
from pathlib import Path

from bei import extras
from bei.bench.results import Rounds, median
from bei.errors import SetupError, one_line

SUFFIXES = (".png", ".svg")
_INCHES, _DOTS = (8, 5), 150
_PERCENTILES = (("p50", "-"), ("p99", "--"))


def check(places: Sequence[Path]) -> None:
    """Raises SetupError for a picture that could not be drawn, before anything is measured."""
    for place in places:
        if place.suffix.lower() not in SUFFIXES:
            raise SetupError(f"--plot {place}: the name must end with {' or '.join(SUFFIXES)}")
    if places:
        try:
            import matplotlib  # noqa: F401  (its presence is asked)
        except ModuleNotFoundError as exc:
            raise SetupError(f"--plot: {exc.name} is not installed: {extras.install('plot')}") from None


def draw(found: Rounds, places: Sequence[Path]) -> None:
    """Raises SetupError for a place that cannot be written."""
    from matplotlib.figure import Figure  # no display is needed

    figure = Figure(figsize=_INCHES, dpi=_DOTS, layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(next(iter(found.values()))):
        for field, style in _PERCENTILES:
            points = [(median(of[name], "texts_per_second"), median(of[name], field)) for of in found.values()]
            known = [(x, y) for x, y in points if x and y is not None]
            label = f"{name} {field}"
            axes.plot(
                *zip(*known, strict=True) if known else ([], []), style, marker="o", color=f"C{number}", label=label
            )
        for load, of in found.items():
            x, y = median(of[name], "texts_per_second"), median(of[name], "p50")
            if x and y is not None:
                axes.annotate(str(load), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="texts a second", ylabel="milliseconds", yscale="log")
    axes.margins(x=0.12)  # room for the last load's name
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    for place in places:
        try:
            figure.savefig(place)
        except OSError as exc:
            raise SetupError(f"--plot {place} cannot be written: {one_line(exc)}") from None
