"""Which level serves: by the processor's flags, and by what the kernel permits."""

import errno
import logging
import platform
from dataclasses import replace

import pytest

from bei.engines.native import levels as module
from bei.engines.native import tiles
from bei.engines.native.engine import _token_budget
from bei.engines.native.levels import LEVELS, level
from bei.errors import SetupError

EVERYTHING = {flag for level in LEVELS for flag in level.features}
SAPPHIRE_RAPIDS = EVERYTHING - {"avx_vnni"} | {"avx512_fp16"}


@pytest.fixture
def machine(monkeypatch, caplog):
    """machine(flags, error): the name of the level that serves there, and what was logged and asked on the way."""
    tiles._permitted.cache_clear()
    tiles._log_hidden.cache_clear()
    asked = []

    def serving(flags: set[str], error: int = 0) -> tuple[str, list[str], int]:
        monkeypatch.setattr(module, "processor_flags", lambda: flags)
        monkeypatch.setattr(tiles, "_ask", lambda: asked.append(1) or error)
        with caplog.at_level(logging.INFO, "bei"):
            names = {level().name for _ in range(3)}
        (name,) = names
        return name, [record.getMessage() for record in caplog.records], len(asked)

    yield serving
    tiles._permitted.cache_clear()
    tiles._log_hidden.cache_clear()


def test_the_best_level_is_taken():
    assert level(EVERYTHING).name == "amx"
    assert level(EVERYTHING - {"amx_bf16"}).name == "avx512_bf16"
    assert level(EVERYTHING - {"avx512_bf16"}).name == "avx512_vnni"
    assert level(EVERYTHING - {"avx512_bf16", "avx512_vnni"}).name == "avx512"
    assert level(EVERYTHING - {"avx512f"}).name == "avx2_vnni"
    assert level({"avx2", "fma", "f16c"}).name == "avx2"
    with pytest.raises(SetupError, match="neither AVX2 nor NEON"):
        level({"sse4_2"})


def test_the_kernel_is_asked_once_for_tiles(machine):
    assert machine(SAPPHIRE_RAPIDS) == ("amx", [], 1)


def test_a_kernel_that_refuses_tiles_is_told_of_once(machine):
    said = "the kernel permits no AMX tiles (Operation not permitted): vectors are used"
    assert machine(SAPPHIRE_RAPIDS, errno.EPERM) == ("avx512_bf16", [said], 1)


def test_a_hypervisor_that_hides_tiles_is_told_of_once(machine):
    said = "the processor is of a kind with AMX tiles, but the hypervisor hides them: vectors are used"
    assert machine(SAPPHIRE_RAPIDS - set(tiles.FEATURES)) == ("avx512_bf16", [said], 0)


@pytest.mark.parametrize("hidden", tiles.FEATURES)
def test_tiles_of_one_type_are_not_used(machine, hidden):
    assert machine(SAPPHIRE_RAPIDS - {hidden}) == ("avx512_bf16", [], 0)


@pytest.mark.parametrize("flags", [{"sse4a", "avx512_fp16"}, set()])
def test_a_processor_without_tiles_is_not_spoken_of(machine, flags):
    assert machine(SAPPHIRE_RAPIDS - set(tiles.FEATURES) - {"avx512_fp16"} | flags) == ("avx512_bf16", [], 0)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="another system call elsewhere")
def test_this_kernel_answers():
    has_tiles = set(tiles.FEATURES) <= set(module.processor_flags())
    assert has_tiles or tiles._ask() in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)


@pytest.mark.parametrize(("name", "large", "small"), [("avx512_bf16", 192, 1024), ("amx", 384, 1024)])
def test_batches_are_larger_where_products_are_faster(tiny_checkpoint, name, large, small):
    isa, spec = next(level for level in LEVELS if level.name == name), tiny_checkpoint.spec
    sizes = {"hidden_size": 1024, "heads": 16, "kv_heads": 16, "head_size": 64, "intermediate_size": 4096}
    bge_large = replace(spec, **sizes, layers=(spec.layers[0],) * 24)
    assert (_token_budget(bge_large, isa), _token_budget(spec, isa)) == (large, small)
