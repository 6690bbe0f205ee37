"""Which level serves: by the processor's flags, by what the kernel permits, and by what the compiler knows."""

import errno
import logging
import platform
import shutil
from dataclasses import replace

import pytest

from bei.engines.base import EngineOptions
from bei.engines.native import engine, library, tiles
from bei.engines.native import levels as module
from bei.engines.native.engine import NativeEngine, _token_budget
from bei.engines.native.levels import LEVELS, LEVELS_OF, X86, level, levels
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


def hides(*features: str) -> str:
    hidden = ", ".join(features)
    return f"the processor is of a kind with AMX tiles, but the hypervisor hides {hidden}: vectors are used"


def test_the_best_level_is_taken():
    assert level(EVERYTHING).name == "amx"
    assert level(EVERYTHING - {"amx_bf16"} | {"sse4a"}).name == "avx512_bf16"
    assert level(EVERYTHING - {"avx512_bf16"}).name == "avx512_vnni"
    assert level(EVERYTHING - {"avx512_bf16", "avx512_vnni"}).name == "avx512"
    assert level(EVERYTHING - {"avx512f"}).name == "avx2_vnni"
    assert level({"avx2", "fma", "f16c"}).name == "avx2"
    with pytest.raises(SetupError, match=f"neither {X86[-1].name.upper()} nor NEON, of which"):
        level({"mmx"})


def test_intel_s_vectors_multiply_floats_faster_than_bf16():
    without_tiles = SAPPHIRE_RAPIDS - set(tiles.FEATURES)
    assert [level.name for level in levels(without_tiles)][:3] == ["avx512_vnni", "avx512_bf16", "avx512"]
    assert [level.name for level in levels(without_tiles | {"sse4a"})][:2] == ["avx512_bf16", "avx512_vnni"]


def test_the_kernel_is_asked_once_for_tiles(machine):
    assert machine(SAPPHIRE_RAPIDS) == ("amx", [], 1)


def test_a_kernel_that_refuses_tiles_is_told_of_once(machine):
    said = "the kernel permits no AMX tiles (Operation not permitted): vectors are used"
    assert machine(SAPPHIRE_RAPIDS, errno.EPERM) == ("avx512_vnni", [said], 1)


def test_a_hypervisor_that_hides_tiles_is_told_of_once(machine):
    assert machine(SAPPHIRE_RAPIDS - set(tiles.FEATURES)) == ("avx512_vnni", [hides(*tiles.FEATURES)], 0)


@pytest.mark.parametrize("hidden", tiles.FEATURES)
def test_a_hypervisor_that_hides_a_part_of_them_is_told_of_once(machine, hidden):
    """On a processor of whatever kind."""
    assert machine(EVERYTHING - {"avx_vnni", hidden}) == ("avx512_vnni", [hides(hidden)], 0)


@pytest.mark.parametrize(("flags", "name"), [({"sse4a", "avx512_fp16"}, "avx512_bf16"), (set(), "avx512_vnni")])
def test_a_processor_without_tiles_is_not_spoken_of(machine, flags, name):
    assert machine(SAPPHIRE_RAPIDS - set(tiles.FEATURES) - {"avx512_fp16"} | flags) == (name, [], 0)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="another system call elsewhere")
def test_this_kernel_answers():
    has_tiles = set(tiles.FEATURES) <= set(module.processor_flags())
    assert has_tiles or tiles._ask() in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)


@pytest.mark.parametrize(
    ("name", "block_rows", "large", "small"), [("avx512_bf16", 96, 192, 1024), ("amx", 448, 448, 1024)]
)
def test_batches_are_larger_where_products_are_faster(tiny_checkpoint, name, block_rows, large, small):
    isa, spec = next(level for level in LEVELS if level.name == name), tiny_checkpoint.spec
    sizes = {"hidden_size": 1024, "heads": 16, "kv_heads": 16, "head_size": 64, "intermediate_size": 4096}
    bge_large = replace(spec, **sizes, layers=(spec.layers[0],) * 24)
    assert [_token_budget(of, isa, block_rows) for of in (bge_large, spec)] == [large, small]


@pytest.fixture
def newer(monkeypatch):
    """A level that this processor has, and that its compiler does not know."""
    made = replace(level(), name="newer", compiler_flags=("-mno-such-instructions",))
    monkeypatch.setattr(engine, "levels", lambda: [made, level()])
    return made


def test_a_level_that_the_compiler_does_not_know_is_left_out(newer, tiny_checkpoint, native_cache, caplog):
    with caplog.at_level(logging.WARNING, "bei"):
        serving = NativeEngine(tiny_checkpoint, EngineOptions(threads=1, cache_dir=native_cache))
    assert serving.facts.device == f"cpu x 1, {level().name}"
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the level newer is not used, but {level().name}: ")
    assert "-mno-such-instructions" in record.getMessage()


def test_without_a_compiler_a_level_that_was_installed_serves(newer, native_cache, tmp_path, monkeypatch, caplog):
    library.load(level(), native_cache)
    shutil.copy(native_cache / library.name_of(level()), tmp_path)
    monkeypatch.setattr(library, "BUILT", tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    (tmp_path / "cache").mkdir()
    assert library.load_fastest([newer, level()], tmp_path / "cache")[0] == level()
    (record,) = caplog.records
    assert f"not used, but {level().name}: no C++ compiler" in record.getMessage()


def test_the_first_level_s_error_is_told_where_none_can_be_compiled(newer, tmp_path, caplog):
    with pytest.raises(library.CannotCompile, match="no-such-instructions"):
        library.load_fastest([newer, replace(newer, compiler_flags=("-mneither",))], tmp_path)
    assert not caplog.records


def test_every_system_s_name_of_a_machine_is_known():
    assert LEVELS_OF["arm64"] == LEVELS_OF["aarch64"]
