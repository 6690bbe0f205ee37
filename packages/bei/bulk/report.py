"""A page about the texts of a job: their lengths, cuts, copies, and the speed over time; one file without scripts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from bei import files
from bei.bulk.inputs import Input, reader
from bei.errors import SetupError, one_line

_WIDTH, _HEIGHT = 640, 160  # pixels of a picture
_SHOWN = 5  # texts with the most copies
_POINTS, _LEAST_STEPS = 60, 2  # of the speed over time
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>bei embed: {title}</title>
<meta name="color-scheme" content="light dark"><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44em; margin: 2em auto; padding: 0 1em }}
th {{ text-align: left; font-weight: normal; padding-right: 2em }} td {{ text-align: right }}
svg {{ width: 100%; height: auto }} rect {{ fill: #4078c0 }} path {{ fill: none; stroke: #4078c0; stroke-width: 2 }}
text {{ font-size: 12px; fill: currentColor }}
</style><h1>{title}</h1>{body}</html>
"""


@dataclass(frozen=True)
class Step:
    """Counts of a moment: seconds since the start of the run, and the rows, tokens and cut texts since the last one."""

    seconds: float
    row_count: int
    tokens: int
    cut: int


def write(file: Path, source: Input, steps: Sequence[Step]) -> None:
    """Reads the texts again. `steps` are those of this run; an earlier one that was interrupted left none. Raises
    SetupError."""
    lengths, hashes = [], []
    for text in _texts(source):
        lengths.append(len(text))
        hashes.append(hash(text))
    page = _PAGE.format(title=escape(f"{source.row_count:,} rows"), body=_body(np.array(lengths), hashes, steps))
    try:
        with files.replacing(file, mode=files.SHARED) as unfinished:
            unfinished.write_text(page, "utf-8")
    except OSError as exc:
        raise SetupError(f"--report {file} cannot be written: {one_line(exc)}") from None


def _texts(source: Input) -> Iterator[str]:
    readers = {suffix: reader(suffix) for suffix in {part.file.suffix for part in source.parts}}
    for part in source.parts:
        yield from readers[part.file.suffix].read(part, source.schema, source.column)[source.column].to_pylist()


def _body(lengths: np.ndarray, hashes: Sequence[int], steps: Sequence[Step]) -> str:
    copies = Counter(hashes)
    repeated = [(count, hashes.index(one) + 1) for one, count in copies.most_common(_SHOWN) if count > 1]
    rows, tokens = sum(step.row_count for step in steps), sum(step.tokens for step in steps)
    seconds = steps[-1].seconds if steps else 0.0
    facts = {
        "rows": f"{len(lengths):,}",
        "rows of this run": f"{rows:,}",
        "tokens of this run": f"{tokens:,}",
        "texts of this run that were cut": f"{sum(step.cut for step in steps):,}",
        "copies of an earlier row": f"{len(lengths) - len(copies):,}",
        "characters of a text: median, 99 %, most": ", ".join(
            f"{value:,.0f}" for value in np.percentile(lengths, (50, 99, 100))
        ),
        "seconds": f"{seconds:,.1f}",
        "tokens a second": f"{tokens / seconds:,.0f}" if seconds else "-",
    }
    told = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in facts.items())
    most = "".join(f"<li>row {row:,}: {count:,} times</li>" for count, row in repeated)
    return (
        f"<table>{told}</table><h2>Lengths in characters</h2>{_bars(lengths)}"
        f"<h2>Tokens a second over time</h2>{_line(steps)}"
        f"<h2>Texts with the most copies</h2><ul>{most or '<li>none</li>'}</ul>"
    )


def _bars(lengths: np.ndarray) -> str:
    """A histogram whose bars are twice as wide as the one before: 1, 2 to 3, 4 to 7 characters, and so on."""
    counts = np.bincount(np.log2(lengths).astype(int))
    width, highest = _WIDTH / len(counts), np.max(counts)
    drawn = []
    for i, count in enumerate(counts):
        height, left = (_HEIGHT - 20) * count / highest, i * width
        drawn.append(
            f'<rect x="{left + 1:.1f}" y="{_HEIGHT - 20 - height:.1f}" width="{width - 2:.1f}" height="{height:.1f}">'
            f"<title>{2**i:,} to {2 ** (i + 1) - 1:,}: {count:,}</title></rect>"
            f'<text x="{left + 2:.1f}" y="{_HEIGHT - 5}">{2**i:,}</text>'
        )
    return _picture("lengths of texts", drawn)


def _line(steps: Sequence[Step]) -> str:
    """Tokens a second in each of equal stretches of the run."""
    if len(steps) < _LEAST_STEPS:
        return "<p>This run was too short.</p>"
    times, tokens = np.array([step.seconds for step in steps]), np.array([step.tokens for step in steps])
    edges = np.linspace(0, times[-1], min(_POINTS, len(steps) // 2) + 1)
    rates = np.histogram(times, edges, weights=tokens)[0] / (edges[1] - edges[0])
    highest = rates.max()
    middles = (edges[1:] + edges[:-1]) / 2 * _WIDTH / times[-1]
    points = [f"{x:.1f} {_HEIGHT - 20 - (_HEIGHT - 40) * y / highest:.1f}" for x, y in zip(middles, rates, strict=True)]
    labels = [f'<text x="2" y="14">{highest:,.0f}</text>', f'<text x="2" y="{_HEIGHT - 5}">0 s</text>']
    labels.append(f'<text x="{_WIDTH - 2}" y="{_HEIGHT - 5}" text-anchor="end">{times[-1]:,.1f} s</text>')
    return _picture("tokens a second over time", [f'<path d="M{" L".join(points)}"/>', *labels])


def _picture(name: str, drawn: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">{"".join(drawn)}</svg>'
