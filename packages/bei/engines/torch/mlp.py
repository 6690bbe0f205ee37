"""The MLP of a layer: one, or a mixture of experts."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bei.architectures.spec import Activation, Clamp, EncoderSpec, Experts
from bei.engines.torch.fused import fused
from bei.engines.torch.linear import ACTIVATIONS, Product, spare_rows
from bei.engines.torch.weights import Weights

Read = Callable[[str, bool, Activation], Product]
"""The name of a product in its layer, whether it has a bias, and the activation of its result → the product."""


def read_mlp(spec: EncoderSpec, weights: Weights, i: int, read: Read) -> Product:
    """The MLP of layer i: [T, hidden] in the weights' type → [T, hidden]."""
    experts = spec.layers[i].experts
    if experts is None:
        return _mlp(read, "", spec.activation, spec.gated, ("up" in spec.biases, "down" in spec.biases))
    return Mixture(experts, weights, f"layers.{i}", read)


class Mixture:
    """Rows are sorted by expert, and each expert computes its rows together."""

    def __init__(self, experts: Experts, weights: Weights, layer: str, read: Read):
        self._spec = experts
        self._router = weights.exact(f"{layer}.router.weight")
        self._router_bias = weights.exact(f"{layer}.router.bias") if experts.biases else None
        self._bias = weights.exact(f"{layer}.experts.bias") if experts.output_bias else None
        biases = experts.biases, experts.biases
        self._experts = [
            _mlp(read, f"experts.{expert}.", experts.activation, experts.gated, biases)
            for expert in range(experts.count)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """float32[T, hidden]"""
        chosen, shares = self._routed(x)
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=self._spec.count).tolist()
        outputs = torch.empty(len(order), x.shape[1], device=x.device)
        for expert, rows in zip(self._experts, order.split(counts), strict=True):
            if len(rows):
                outputs[rows] = self._of(expert, x[rows // self._spec.chosen])
        summed: Tensor = _summed(outputs.view(*shares.shape, -1), shares, self._bias)
        return summed

    def _routed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each row, int64[T, chosen], and their shares, float32[T, chosen]."""
        shares, chosen = F.linear(x.float(), self._router, self._router_bias).softmax(-1).topk(self._spec.chosen)
        return chosen, shares / shares.sum(-1, keepdim=True) if self._spec.normalized else shares

    @staticmethod
    def _of(expert: Product, x: Tensor) -> Tensor:
        spare = spare_rows(len(x)) if x.device.type == "cpu" else 0
        return expert(F.pad(x, (0, 0, 0, spare)))[: len(x)].float()


def _mlp(read: Read, prefix: str, activation: Activation | Clamp, gated: bool, biases: tuple[bool, bool]) -> Product:
    if not gated and not isinstance(activation, Clamp):
        up, down = read(f"{prefix}up", biases[0], activation), read(f"{prefix}down", biases[1], "identity")
        return lambda x: down(up(x))
    up, down = (read(f"{prefix}{part}", bias, "identity") for part, bias in zip(("up", "down"), biases, strict=True))
    return lambda x: down(_gated(up(x), activation))


@fused
def _gated(inner: Tensor, activation: Activation | Clamp) -> Tensor:
    """[T, 2 * intermediate], the gate first → [T, intermediate]"""
    gate, up = inner.chunk(2, -1)
    if isinstance(activation, Clamp):
        gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
        return gate * torch.sigmoid(activation.alpha * gate) * (up + 1)
    return ACTIVATIONS[activation](gate) * up


@fused
def _summed(outputs: Tensor, shares: Tensor, bias: Tensor | None) -> Tensor:
    """[T, chosen, hidden], [T, chosen] → [T, hidden]"""
    found = (outputs * shares[..., None]).sum(1)
    return found if bias is None else found + bias
