"""Every engine that runs here, the native one at each level of instructions that the processor has."""

from collections.abc import Callable

import pytest

from bei.checkpoint.load import Checkpoint
from bei.engines.base import Engine
from bei.engines.native.engine import NativeEngine
from bei.engines.native.isa import levels
from bei.engines.torch.engine import TorchEngine

Make = Callable[..., Engine]
NATIVE = {f"native {level.name}": level for level in levels()}


@pytest.fixture(scope="session")
def native_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("native")


@pytest.fixture(params=["torch", *NATIVE])
def make(request, native_cache) -> Make:
    """make(checkpoint, precision=…, threads=…): an engine."""

    def make(checkpoint: Checkpoint, precision: str, threads: int | None = 1) -> Engine:
        if request.param == "torch":
            return TorchEngine(checkpoint, precision=precision, threads=threads)
        isa = NATIVE[request.param]
        return NativeEngine(checkpoint, precision=precision, threads=threads, cache_dir=native_cache, isa=isa)

    return make
