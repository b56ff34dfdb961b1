"""Quantization-aware training: the network runs with quantized weights, and real-valued copies of them are trained.

Each training step runs forward and backward with weights rounded to their grid, with one scale per output channel. The
gradient of a rounded weight is applied to the real-valued weight (straight-through estimator: Bengio et al., arXiv
1308.3432; used like this in BinaryConnect, Courbariaux et al., NeurIPS 2015). Scales are fixed at their initial
values; the batch norms that follow can learn another magnitude of a channel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from svitc.quantization.weight_grid import nearest, scales


class FakeQuantizedWeights:
    """Context manager that quantizes the weights of a module within ``with fake_quantized():``.

    Args:
        module: the network, whose weights lie on their grids already.
        bits: layer -> 8, 4, 2 or ``TERNARY``.
    """

    def __init__(self, module: nn.Module, bits: Mapping[str, int]) -> None:
        self._quantized: list[tuple[nn.Parameter, int, torch.Tensor]] = []
        for name, width in sorted(bits.items()):
            weight = module.get_submodule(name).weight
            assert isinstance(weight, nn.Parameter)
            scale = scales(weight.detach().flatten(1).double(), width).to(weight.dtype)
            self._quantized.append((weight, width, scale.view(-1, *(1,) * (weight.ndim - 1))))

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Round the weights on entry, and put the real-valued ones back on exit."""
        """Round the weights on entry, and put the real-valued ones back on exit."""
        real = [weight.data for weight, _, _ in self._quantized]
        for weight, bits, scale in self._quantized:
            weight.data = nearest(weight.data / scale, bits) * scale
        try:
            yield
        finally:
            for (weight, _, _), value in zip(self._quantized, real, strict=True):
                weight.data = value


__all__ = ["FakeQuantizedWeights"]
