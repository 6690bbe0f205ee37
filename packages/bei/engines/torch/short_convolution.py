"""The short convolution of a layer (architectures/spec.py: ShortConvolution) over packed tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bei.architectures.layer_parts import ShortConvolution
from bei.engines.torch.fused import fused
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.weights import Weights

_NOWHERE = -(1 << 20)  # the position of rows after the last token


class Places:
    """Where the tokens of a batch stand. `positions`: [rows], within the sequence. `seen`: [rows, 1], 0 for a token
    that is not attended to; None if there is none."""

    def __init__(self, inputs: Inputs, rows: int):
        spare = rows - len(inputs["positions"])
        self.positions = F.pad(inputs["positions"], (0, spare), value=_NOWHERE)
        self.seen = None
        if not inputs.all_seen:
            layout = inputs.layout
            seen = torch.from_numpy(layout.positions < inputs.attended[layout.owners]).to(self.positions.device)
            self.seen = F.pad(seen, (0, spare))[:, None]


class ShortConvolutionLayer:
    """[rows, 3 * hidden] → [rows, hidden]"""

    def __init__(self, spec: ShortConvolution, weights: Weights, layer: str):
        self._spec, self._taps = spec, weights.exact(f"{layer}.taps.weight")[:, 0].T.contiguous()

    def __call__(self, mixed: Tensor, places: Places) -> Tensor:
        mixed = mixed if places.seen is None else mixed * places.seen
        convolved: Tensor = _convolved(mixed, self._taps, places.positions, self._spec.first)
        return convolved


@fused
def _convolved(mixed: Tensor, taps: Tensor, positions: Tensor, first: int) -> Tensor:
    """taps: [taps, hidden]. A token's neighbor at a distance is that many rows away, if its position is. Other rows are
    chosen away, not multiplied by zero: one of another sequence may hold a NaN."""
    b, c, x = mixed.float().chunk(3, -1)
    product = b * x
    found = torch.zeros_like(product)
    for distance, tap in enumerate(taps, first):
        is_neighbor = positions.roll(-distance) == positions + distance
        found = found + torch.where(is_neighbor[:, None], tap * product.roll(-distance, 0), 0)
    return (c * found).to(mixed.dtype)
