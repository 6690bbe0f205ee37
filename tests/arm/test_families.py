"""The native engine on ARM64 against transformers, whose results this machine computes: at each level, families of
models, and products of random sizes."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.arm.runner import ALONE
from tests.support import arm
from tests.support.arm import CPUS, needs_arm
from tests.support.parity import cosines, least_in_bf16, reference, sequences
from tests.support.tiny_models import ALL_EXPERTS, FAMILIES, random_model, save

pytestmark = needs_arm
ONE = {"neon_i8mm": "qwen3", "neon_dotprod": "modernbert", "neon": "deberta-v2"}
"""The family that `make test` runs at each level; `make test-arm` runs all of them."""


@pytest.fixture(scope="session", params=CPUS)
def at_level(request, tmp_path_factory, native_cache) -> tuple[Path, dict[str, np.ndarray]]:
    """The folder of the results of a level, and transformers' states of each family."""
    level, folder, expected = request.param, tmp_path_factory.mktemp(request.param), {}
    (folder / "sequences.json").write_text(json.dumps(sequences()))
    for family in families(request.config, level):
        model = random_model(family, **ALL_EXPERTS.get(family, {}))
        expected[family] = reference(model, sequences())
        save(tmp_path_factory.mktemp("model"), model).rename(folder / family)
    arm.run(CPUS[level], "-m", "tests.arm.runner", folder, native_cache)
    assert (folder / "level").read_text() == level
    return folder, expected


def families(config: pytest.Config, level: str) -> list[str]:
    if not config.getoption("--arm"):
        return [ONE[level]]
    return list(FAMILIES)


def test_products(at_level):
    found = np.load(at_level[0] / "products.npz")
    assert {precision: found[precision].max() <= 1 for precision in found} == dict.fromkeys(
        ("fp32", "bf16", "int8"), True
    )


def test_states_equal_transformers(at_level):
    folder, expected = at_level
    for family, states in expected.items():
        error = np.abs(np.load(folder / f"{family}.npz")["states"] - states).max()
        assert error <= 2e-5 * max(1, np.abs(states).max()), family


def test_lower_precisions_are_close(at_level):
    folder, expected = at_level
    for family in expected:
        rows = np.load(folder / f"{family}.npz")
        assert cosines(rows["fp32"], rows["bf16"]).min() >= least_in_bf16(family), family
        assert np.median(cosines(rows["fp32"], rows["int8"])) >= 0.998, family


def test_a_row_is_bit_for_bit_what_it_is_alone(at_level):
    folder, expected = at_level
    for family in expected:
        rows = np.load(folder / f"{family}.npz")
        for precision in ("fp32", "bf16", "int8"):
            np.testing.assert_array_equal(rows[f"{precision} alone"][0], rows[precision][ALONE], family)
