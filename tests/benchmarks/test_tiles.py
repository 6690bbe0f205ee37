"""The count of AMX's cycles: by hand for one product, and as the pages print it."""

from pathlib import Path

import pytest

from benchmarks.tiles import heights, product, table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("rows", "tiles"),
    [(1, [(1,)]), (16, [(16,)]), (17, [(16, 1)]), (33, [(16,), (16, 1)]), (40, [(16, 16), (8,)]), (96, [(16, 16)] * 3)],
)
def test_rows_are_cut_into_tiles(rows, tiles):
    assert list(heights(rows)) == tiles


def test_a_product_by_hand():
    """32 rows of 128 bytes times 64 columns: two steps of two by four tiles, each of 16 cycles; eight tiles of sums,
    each stored in 16 cycles and finished in 16 vectors."""
    counted = product(32, 128, 64, size=1, finish=4)
    assert counted.tiles == 2 * 2 * 4 * 16 + 8 * 16 + 8 * 16 * 4
    assert counted.peak == 2 * 2 * 4 * 16
    assert counted.vectors == 32 * 128 * 64 / 128 + 8 * 16 * 4


def test_the_page_has_the_table():
    assert table() in (ROOT / "benchmarks" / "README.md").read_text()
