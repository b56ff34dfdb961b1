"""Training of rounded weights: the network runs on whole numbers of few bits, and real numbers behind them learn.

Each step runs forwards and backwards with weights rounded to the grid that they began on, a scale for each channel; the
gradient of a rounded weight is taken for the real number's own (straight-through: Bengio et al., arXiv 1308.3432; as
BinaryConnect does it, Courbariaux et al., NeurIPS 2015). Scales stay; batch norms behind learn a channel's size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from svitc.quantization.weight_grid import nearest, scales


class FakeQuantizedWeights:
    """Weights of a module that are rounded within ``with rounded():`` and real numbers outside.

    Args:
        module: whose weights lie on their grids already.
        bits: layer -> 8, 4 or 2.
    """

    def __init__(self, module: nn.Module, bits: Mapping[str, int]) -> None:
        self._of: list[tuple[nn.Parameter, int, torch.Tensor]] = []
        for name, each in sorted(bits.items()):
            weight = module.get_submodule(name).weight
            assert isinstance(weight, nn.Parameter)
            scale = scales(weight.detach().flatten(1).double(), each).to(weight.dtype)
            self._of.append((weight, each, scale.view(-1, *(1,) * (weight.ndim - 1))))

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        real = [weight.data for weight, _, _ in self._of]
        for weight, bits, scale in self._of:
            weight.data = nearest(weight.data / scale, bits) * scale
        try:
            yield
        finally:
            for (weight, _, _), value in zip(self._of, real, strict=True):
                weight.data = value


__all__ = ["FakeQuantizedWeights"]
