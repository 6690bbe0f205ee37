"""A convolution over the tokens of each sequence, as one product of every token with its neighbors."""

import torch
from torch import Tensor

from bei.architectures.spec import Convolution, EncoderSpec
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.linear import ACTIVATIONS
from bei.engines.torch.norm import NormLayer
from bei.engines.torch.weights import Weights


class ConvolvedLayer:
    """norm(output + activation(convolution of the input)), of the first layer's input and output (transformers,
    DebertaV2's ConvLayer)."""

    def __init__(self, spec: EncoderSpec, convolution: Convolution, weights: Weights):
        self._spec, self._dtype = convolution, weights.dtype
        kernel = weights.exact("convolution.weight")  # [hidden, hidden / groups, taps]
        self._kernel = kernel.unflatten(0, (convolution.groups, -1)).transpose(-1, -2).flatten(2).to(weights.dtype)
        self._bias, self._norm = weights.exact("convolution.bias"), NormLayer(spec.norm, weights, "convolution.norm")

    def __call__(self, before: Tensor, after: Tensor, inputs: Inputs) -> Tensor:
        """float32[rows, hidden] each; the rows after the last token are spare."""
        near = neighbors(before, inputs, self._spec.taps)
        columns = near.unflatten(-1, (self._spec.groups, -1)).permute(2, 0, 1, 3).flatten(2).to(self._dtype)
        convolved = (columns @ self._kernel.transpose(1, 2)).float().transpose(0, 1).flatten(1) + self._bias
        summed = after.clone()
        summed[: len(convolved)] += ACTIVATIONS[self._spec.activation](convolved)
        return self._norm(summed)


def neighbors(x: Tensor, inputs: Inputs, taps: int) -> Tensor:
    """[tokens, taps, width]: the tokens around each one, zero beyond its sequence. x: [rows, width], of the tokens and
    then of spare rows."""
    position = inputs["positions"].long()
    length = inputs["lengths"].repeat_interleave(inputs["lengths"])
    distance = torch.arange(taps, device=x.device) - taps // 2
    at = position[:, None] + distance
    inside = (at >= 0) & (at < length[:, None])
    token = torch.arange(len(position), device=x.device)[:, None] + distance
    return torch.where(inside[..., None], x[token.clamp(0, len(position) - 1)], 0)  # not * 0: NaN of another text
