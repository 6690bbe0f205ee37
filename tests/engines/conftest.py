"""Every engine that runs here, the native one at each level of instructions that the processor has, and TensorRT's
networks, interpreted."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from bei import files
from bei.checkpoint.load import Checkpoint
from bei.engines.base import Engine, EngineOptions
from bei.engines.native import library
from bei.engines.native.engine import NativeEngine
from bei.engines.native.levels import level, levels
from bei.engines.torch.engine import TorchEngine
from tests.support.native_products import LOADED
from tests.support.tensorrt_interpreter import Interpreted
from tests.support.tiny_models import MEAN, random_model, save

Make = Callable[..., Engine]
Saved = Callable[..., tuple[PreTrainedModel, Path]]
NATIVE = {f"native {level.name}": level for level in levels()}
TENSORRT = ["tensorrt"] if find_spec("tensorrt_rtx") else []  # for x86-64 Linux only


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the random models of a family the first is always run, the others by `make test-all`, but never by an
    interpreter, which takes its time, or by levels of instructions below the processor's own."""
    never = _ONCE if config.getoption("every_seed") else None
    items[:] = [item for item in items if not _is_one_more(getattr(item, "callspec", None), never)]


def _is_one_more(case, never: set[str] | None) -> bool:
    return case is not None and case.params.get("seed", 0) > 0 and (never is None or case.params.get("make") in never)


_ONCE = {"tensorrt", *list(NATIVE)[1:]}


@pytest.fixture(scope="module")
def packs(native_cache) -> Iterator[None]:
    """The library in LOADED, for tests that pack many matrices."""
    with files.cache(native_cache, "native") as folder:
        loaded = library.load(level(), folder)
    LOADED.append(loaded)
    yield
    LOADED.remove(loaded)


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Saved:
    """saved(family, seed, head, pooling=…, **options): `random_model` of these and the folder where it is saved, made
    once for every engine, so neither may be changed."""
    made = {}

    def once(family: str, seed: int = 0, head: str = "", *, pooling: dict | None = MEAN, **options):
        key = repr((family, seed, head, pooling, options))
        if key not in made:
            model = random_model(family, seed, head, **options)
            made[key] = model, save(tmp_path_factory.mktemp(family), model, pooling=pooling)
        return made[key]

    return once


@pytest.fixture(params=["torch", *NATIVE, *TENSORRT])
def make(request, native_cache) -> Make:
    """make(checkpoint, precision=…, threads=…): an engine."""

    def make(checkpoint: Checkpoint, precision: str, threads: int | None = 1) -> Engine:
        options = EngineOptions(precision=precision, threads=threads, cache_dir=native_cache)
        if request.param == "torch":
            return TorchEngine(checkpoint, options)
        if request.param == "tensorrt":
            return Interpreted(checkpoint, options)
        return NativeEngine(checkpoint, options, isa=NATIVE[request.param])

    return make
