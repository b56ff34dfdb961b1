"""Layers on whole numbers: int8 weights, exact sums, one scale and one bias for each channel.

These modules are the reference that defines what a quantized network computes. A sum of products of int8 weights
and whole-numbered inputs stays below 2^24 (passes/quantization/quantize_weights.py sees to it), where float32 is exact
in any order; the scale has so few bits that its product with the sum is exact, too; the addition of the bias rounds
once. So every runtime that keeps to IEEE float32 gives the same bits, fused or not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

WEIGHTS = ("fp32", "int8")
EXACT = 1 << 24  # whole numbers up to here are exact in float32, and so are their sums in any order


class _Quantized(nn.Module):
    """What the three have in common: ``y = (W x) * scale + bias``.

    Attributes:
        weight: int8, of the layer's usual shape.
        scale: float32, ``[out]``, positive.
        bias: float32, ``[out]``.
    """

    weight: Any
    scale: torch.Tensor
    bias: Any

    def _quantized(self) -> None:
        """Trade the float weights for int8 ones."""
        shape = self.weight.shape
        device = self.weight.device
        del self.weight
        if self.bias is not None:
            del self.bias
        else:
            del self._parameters["bias"]
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.ones(shape[0], device=device))
        self.register_buffer("bias", torch.zeros(shape[0], device=device))

    def _affine(self, sums: torch.Tensor, spatial: int) -> torch.Tensor:
        ones = (1,) * spatial
        return sums * self.scale.view(-1, *ones) + self.bias.view(-1, *ones)


class QuantizedConv1d(nn.Conv1d, _Quantized):
    """A one-dimensional convolution with int8 weights; see this module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._quantized()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._affine(self._conv_forward(input, self.weight.to(input.dtype), None), 1)


class QuantizedConv2d(nn.Conv2d, _Quantized):
    """A two-dimensional convolution with int8 weights; see this module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._quantized()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._affine(self._conv_forward(input, self.weight.to(input.dtype), None), 2)


class QuantizedLinear(nn.Linear, _Quantized):
    """A linear layer with int8 weights; see this module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._quantized()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._affine(nn.functional.linear(input, self.weight.to(input.dtype)), 0)


class FixedPoint(nn.Module):
    """A real input as a whole number of steps, ``clamp(round(x / step), -limit, limit)``, halves to even numbers.

    Args:
        step: a power of two, so that the quotient is exact.
        limit: the largest number.
    """

    def __init__(self, step: float, limit: int) -> None:
        super().__init__()
        self.step, self.limit = step, limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * (1 / self.step)).round().clamp(-self.limit, self.limit)

    def extra_repr(self) -> str:
        return f"step={self.step}, limit={self.limit}"


QUANTIZED = {nn.Conv1d: QuantizedConv1d, nn.Conv2d: QuantizedConv2d, nn.Linear: QuantizedLinear}


BITS = (8, 4, 2)


LEVELS = {8: 127, 4: 7, 2: 3}  # the largest whole number
