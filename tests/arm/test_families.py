"""The native engine on ARM64 against transformers, whose results this machine computes: at each level the families of
models, and products of random sizes; options, heads, poolings and long texts at one level each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bei.checkpoint.load import read
from bei.engines.base import Batch, EngineOptions
from bei.engines.native.engine import NativeEngine
from tests.arm.cases import ALONE, ORDER, PRECISIONS, Case, one_family, others
from tests.support import arm
from tests.support.arm import CPUS, needs_arm
from tests.support.parity import cosines, least_in_bf16, sequences
from tests.support.tiny_models import FAMILIES

pytestmark = needs_arm
ONE = {"neon_i8mm": "qwen3", "neon_dotprod": "modernbert", "neon": "deberta-v2"}
"""The family that `make test` runs at each level; `make test-arm` runs all of them, and the other cases."""


@dataclass(frozen=True)
class Results:
    folder: Path
    cases: list[Case]

    def of(self, kind: str) -> Iterator[tuple[Case, Mapping[str, np.ndarray]]]:
        for case in self.cases:
            if case.kind == kind:
                yield case, np.load(self.folder / f"{case.folder.name}.npz")


@pytest.fixture(scope="session", params=CPUS)
def at_level(request, tmp_path_factory, native_cache) -> Results:
    level, folder = request.param, tmp_path_factory.mktemp(request.param)
    everything = request.config.getoption("--arm")
    cases = [one_family(family, folder / family) for family in (FAMILIES if everything else [ONE[level]])]
    if everything:
        cases += [make(folder / name) for name, make in of_level(level)]
    arm.run(CPUS[level], "-m", "tests.arm.runner", folder, native_cache)
    assert (folder / "level").read_text() == level
    return Results(folder, cases)


def of_level(level: str) -> list:
    """Every third of the other cases: the levels have all of them together."""
    return list(others())[list(CPUS).index(level) :: len(CPUS)]


def test_products(at_level):
    found = np.load(at_level.folder / "products.npz")
    assert {precision: found[precision].max() <= 1 for precision in found} == dict.fromkeys(PRECISIONS, True)


@pytest.mark.parametrize("kind", ["family", "option", "head", "pooling", "blocks"])
def test_it_equals_transformers(at_level, kind):
    for case, found in at_level.of(kind):
        for name, expected in case.expected.items():
            error = np.abs(found[name] - expected).max()
            assert error <= 2e-5 * max(1, np.abs(expected).max()), f"{case.folder.name}, {name}"


def test_lower_precisions_are_close(at_level, native_cache):
    """Four bits change the rows of random weights much, so those are compared with this machine's."""
    int4 = EngineOptions(precision="int4", threads=1, cache_dir=native_cache)
    for case, found in at_level.of("family"):
        family = case.folder.name
        assert cosines(found["fp32"], found["bf16"]).min() >= least_in_bf16(family), family
        assert cosines(found["fp32"], found["int8"]).mean() >= 0.998, family
        here = NativeEngine(read(case.folder, family), int4).run(Batch.pack(sequences()))
        assert cosines(here, found["int4"]).min() >= 0.998, family


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_is_bit_for_bit_what_it_is_alone(at_level, precision):
    for case, found in at_level.of("family"):
        together, family = found[precision], case.folder.name
        np.testing.assert_array_equal(found[f"{precision} shuffled"], together[ORDER], family)
        for i in ALONE:
            np.testing.assert_array_equal(found[f"{precision} alone {i}"][0], together[i], family)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_threads_and_blocks_change_no_bit(at_level, precision):
    for case, found in at_level.of("blocks"):
        alone = [found[f"{precision} alone {i}"] for i in range(len(found[precision]))]
        np.testing.assert_array_equal(found[precision], np.concatenate(alone), case.folder.name)
