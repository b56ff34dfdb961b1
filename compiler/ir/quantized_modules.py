"""Layers on whole numbers: int8 weights, exact sums, one scale and one bias for each channel.

These modules are the reference that defines what a quantized network computes. A sum of products of int8 weights
and whole-numbered inputs stays below 2^24 (passes/quantization/quantize_weights.py sees to it), where float32 is exact
in any order; the scale has so few bits that its product with the sum is exact, too; the addition of the bias rounds
once. So every runtime that keeps to IEEE float32 gives the same bits, fused or not.
"""

from __future__ import annotations

from torch import nn

from svitc.ir import standalone_layers
from svitc.ir.standalone_layers import QuantizedConv1d, QuantizedConv2d, QuantizedLinear

WEIGHTS = ("fp32", "int8")
EXACT = 1 << 24  # whole numbers up to here are exact in float32, and so are their sums in any order


class FixedPoint(standalone_layers.FixedPoint):
    """A real input as a whole number of steps, ``clamp(round(x / step), -limit, limit)``, halves to even numbers.

    Args:
        step: a power of two, so that the quotient is exact.
        limit: the largest number.
    """

    step: float
    limit: int

    def __init__(self, step: float, limit: int) -> None:
        super().__init__(step, limit)

    def extra_repr(self) -> str:
        return f"step={self.step}, limit={self.limit}"


QUANTIZED = {nn.Conv1d: QuantizedConv1d, nn.Conv2d: QuantizedConv2d, nn.Linear: QuantizedLinear}

BITS = (8, 4, 2)
LEVELS = {8: 127, 4: 7, 2: 3}  # the largest whole number

__all__ = [
    "BITS",
    "EXACT",
    "LEVELS",
    "QUANTIZED",
    "WEIGHTS",
    "FixedPoint",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedLinear",
]
