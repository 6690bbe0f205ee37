"""The peaks of the inputs of a model's products on texts, which set static scales."""

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from bei.checkpoint.load import Checkpoint
from bei.engines.base import Batch
from bei.engines.compute import Compute
from bei.engines.torch.encoder import Encoder
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.weights import Weights
from bei.errors import SetupError


def input_peaks(checkpoint: Checkpoint, products: Collection[str], batches: Iterable[Batch]) -> dict[str, float]:
    """The largest absolute input of each of the products (`layers.3.up`): as the checkpoint states it, or as seen on
    `batches` in bf16. Raises SetupError for one that is not finite."""
    stated = {name: checkpoint.tensors.input_peak(f"{name}.weight") for name in products}
    known = {name: peak for name, peak in stated.items() if peak is not None}
    if len(known) == len(stated):
        return known
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seen: dict[str, Tensor] = {}

    def observe(name: str, x: Tensor) -> None:
        peak = x.abs().amax()
        seen[name] = torch.maximum(seen[name], peak) if name in seen else peak

    with torch.inference_mode():
        encoder = Encoder(checkpoint.spec, Weights(checkpoint, device, Compute("bf16")), observe)
        for batch in batches:
            inputs = Inputs.of(batch, checkpoint.spec)
            encoder(inputs if device.type == "cpu" else inputs.on(device))
    found = _with_others(products, {name: float(peak) for name, peak in seen.items()})
    peaks = {name: found[name] if peak is None else peak for name, peak in stated.items()}
    del encoder
    if device.type == "cuda":
        torch.cuda.empty_cache()  # another library builds next, with memory of its own
    broken = [name for name, peak in peaks.items() if not 0 <= peak < float("inf")]
    if broken:
        raise SetupError(f"calibration: the inputs of {broken[0]} are not finite; quantize another checkpoint")
    return peaks


def _with_others(products: Collection[str], seen: Mapping[str, float]) -> dict[str, float]:
    """The peaks of all products: an expert that no text chose has the largest one of the layer's others."""

    def of_any(name: str) -> str:
        return re.sub(r"\.experts\.\d+\.", ".experts.", name)

    largest: dict[str, float] = {}
    for name, peak in seen.items():
        largest[of_any(name)] = max(peak, largest.get(of_any(name), 0.0))
    return {name: seen[name] if name in seen else largest[of_any(name)] for name in products}
