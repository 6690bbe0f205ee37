"""Cycles of a core with AMX, counted: no such processor was at hand. `python -m benchmarks.tiles` prints the table.

A product of tiles takes 16 cycles. A tile is read in half as many cycles as it has rows, while others are multiplied.
Sums are stored and finished by vectors afterward. A block of rows waits for each matrix to arrive. Softmax, norms and
rounding take vectors. The same count without tiles gives the ratio.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

_TILE_ROWS, _TILE_BYTES, _TILE_COLUMNS = 16, 64, 16
_PRODUCT, _LINES = 16, 2  # cycles; lines of 64 bytes that are read in a cycle
_STREAM = 4  # bytes of a matrix that arrive in a cycle from beyond the second cache, while other cores read, too
_FINISH, _GELU, _SCORE = 4, 7, 9  # cycles of a vector of sums: scale, bias and store; GELU; softmax's three passes
_ROW = 1.5  # cycles of a vector in a pass over a row: a norm has three, rounding to bytes two
_PER_VECTOR = {1: 128, 2: 64}  # multiplications of vectors in a cycle, by the bytes of a number


@dataclass(frozen=True)
class Shape:
    name: str
    hidden: int
    inner: int
    heads: int

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of a layer's products."""
        return (
            *((self.hidden, 3 * self.hidden), (self.hidden, self.hidden)),
            *((self.hidden, self.inner), (self.inner, self.hidden)),
        )


SHAPES = (Shape("MiniLM", 384, 1536, 12), Shape("bge-large", 1024, 4096, 16))


@dataclass(frozen=True)
class Count:
    """Cycles: of the multiplications alone, of all with tiles, of all with vectors."""

    peak: float
    tiles: float
    vectors: float


def heights(rows: int) -> Iterator[tuple[int, ...]]:
    """The rows of the tiles of each step, as cpp/kernel/linear.h cuts them."""
    steps = _up(rows, 32)
    starts = [min(rows, _up(step * rows // steps, _TILE_ROWS) * _TILE_ROWS) for step in range(steps)]
    for start, end in zip(starts, [*starts[1:], rows], strict=True):
        yield (min(end - start, 16), end - start - 16) if end - start > 16 else (end - start,)


def product(rows: int, inputs: int, outputs: int, size: int, finish: float) -> Count:
    """rows times a matrix of numbers of `size` bytes; `finish` cycles for each vector of sums."""
    deep, wide = _up(inputs * size, _TILE_BYTES), _up(outputs, _TILE_COLUMNS)
    multiplied = read = stored = 0.0
    for tiles in heights(rows):
        multiplied += _PRODUCT * len(tiles) * deep * wide
        across = 2 if len(tiles) > 1 else 4  # tiles of columns to a tile of rows
        read += deep * (_up(wide, across) * sum(tiles) + wide * _TILE_ROWS) / _LINES
        stored += _PRODUCT * len(tiles) * wide
    last = stored + finish * rows * wide
    peak = rows * inputs * outputs * size / (_PRODUCT * _TILE_BYTES)
    return Count(peak, max(multiplied, read) + last, rows * inputs * outputs / _PER_VECTOR[size] + finish * rows * wide)


def layer(shape: Shape, rows: int, keys: int, size: int) -> Count:
    """A block of `rows` tokens of texts of `keys` tokens."""
    total = [0.0, 0.0, 0.0]

    def add(count: Count, times: float = 1) -> None:
        for i, cycles in enumerate((count.peak, count.tiles, count.vectors)):
            total[i] += times * cycles

    for inputs, outputs in shape.matrices:
        counted = product(rows, inputs, outputs, size, _FINISH + _GELU * (outputs == shape.inner))
        arrival = inputs * outputs * size / _STREAM
        add(Count(counted.peak, max(counted.tiles, arrival), max(counted.vectors, arrival)))
    head, queries = shape.hidden // shape.heads, min(rows, keys)
    texts = rows / queries
    add(product(queries, head, keys, 2, _SCORE), shape.heads * texts)
    add(product(queries, _up(keys, 32) * 32, head, 2, _FINISH), shape.heads * texts)
    passes = 2 * 3 * shape.hidden + (2 * (3 * shape.hidden + shape.inner) if size == 1 else 2 * shape.hidden)
    add(Count(0, 1, 1), _ROW * rows * passes / 16)
    return Count(*total)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple)


def table() -> str:
    lines = [
        "| model, products | tokens of a block, of a text | share of the tiles' peak | times vectors |",
        "|---|---|---|---|",
    ]
    for shape in SHAPES:
        for size, name in ((2, "bf16"), (1, "int8")):
            for rows, keys in ((12, 12), (96, 127), (224, 127)):
                count = layer(shape, rows, keys, size)
                share, ratio = count.peak / count.tiles, count.vectors / count.tiles
                lines.append(f"| {shape.name}, {name} | {rows}, {keys} | {share:.0%} | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
