"""From a checkpoint to the bytes of a plan. Needs no GPU if a target is named (TensorRT-RTX)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bei.architectures.spec import EncoderSpec
from bei.checkpoint.load import Checkpoint
from bei.engines.compute import Compute
from bei.engines.tensorrt.api import API
from bei.engines.tensorrt.attention import Attending
from bei.engines.tensorrt.graph import Graph
from bei.engines.tensorrt.inputs import shape
from bei.engines.tensorrt.network import Network
from bei.engines.tensorrt.products import Products
from bei.engines.tensorrt.profiles import Profile
from bei.errors import SetupError

log = logging.getLogger("bei")


@dataclass(frozen=True)
class Recipe:
    """All that a plan depends on, except the weights. `all_seen`: all tokens of each sequence are attended to.
    `target`: a compute capability to build for ahead of time; None: this machine's GPU."""

    spec: EncoderSpec
    compute: Compute
    profiles: tuple[Profile, ...]
    all_seen: bool
    target: str | None = None

    @property
    def longest(self) -> int:
        return self.profiles[-1].length


def define(
    api: API, builder: Any, checkpoint: Checkpoint, recipe: Recipe, peaks: Mapping[str, float], packed: bool = True
) -> tuple[Graph, Network]:
    """The network of a recipe, with packed attention if that is possible and `packed`."""
    graph = Graph(api, builder)
    products = Products(graph, checkpoint.tensors, recipe.compute, peaks)
    attending = Attending.of(recipe.spec, graph, recipe.all_seen, packed)
    network = Network(graph, recipe.spec, checkpoint.tensors, products, attending, recipe.longest, recipe.all_seen)
    network.build()
    return graph, network


def build(
    api: API, checkpoint: Checkpoint, recipe: Recipe, peaks: Mapping[str, float], timing: bytes = b""
) -> tuple[np.ndarray, bytes]:
    """The bytes of the plan, and the timing cache of the GPU's kernels. Raises SetupError."""
    for packed in (True, False) if api.has_packed_attention else (False,):
        builder = api.builder()
        graph, network = define(api, builder, checkpoint, recipe, peaks, packed)
        if packed and not network.attending.packed:
            continue
        config = api.config(builder, recipe.target, timing)
        for profile in recipe.profiles:
            config.add_optimization_profile(_optimization_profile(builder, network.inputs, recipe.spec, profile))
        plan = builder.build_serialized_network(graph.network, config)
        if plan is not None:
            return np.frombuffer(plan, np.uint8), api.timing(config)
        if packed:
            log.info("%s has no packed attention for this model and GPU; attention is padded", api.name)
    raise SetupError(f"{api.name} cannot build this network; its reason is in the log")


def _optimization_profile(builder: Any, names: tuple[str, ...], spec: EncoderSpec, most: Profile) -> Any:
    """Sizes from one to the largest; tuned for the largest."""
    profile = builder.create_optimization_profile()
    for name in names:
        largest = shape(name, spec, most)
        profile.set_shape(name, shape(name, spec, Profile(1, 1, 1)), largest, largest)
    return profile
