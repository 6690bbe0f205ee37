"""Every engine that runs here, the native one at each level of instructions that the processor has; what it refuses,
the torch engine serves."""

from collections.abc import Callable

import pytest

from bei.architectures.spec import Disentangled
from bei.checkpoint.load import Checkpoint
from bei.engines.base import Engine
from bei.engines.native.engine import NativeEngine
from bei.engines.native.isa import levels
from bei.engines.torch.engine import TorchEngine
from bei.errors import SetupError

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
        native = {"threads": threads, "cache_dir": native_cache, "isa": NATIVE[request.param]}
        if not isinstance(checkpoint.spec.relative_bias, Disentangled):
            return NativeEngine(checkpoint, precision=precision, **native)
        with pytest.raises(SetupError, match="torch engine's"):
            NativeEngine(checkpoint, precision=precision, **native)
        return TorchEngine(checkpoint, precision=precision, threads=threads)

    return make
