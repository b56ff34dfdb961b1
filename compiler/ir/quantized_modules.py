"""Quantized layers with integer arithmetic: int8 or int16 weights, exact sums, a scale and a bias for each channel.

These modules are the reference that defines the output of a quantized network. A sum of products of integer weights
and integer inputs stays below 2^24 (passes/quantization/quantize_weights.py ensures this), so that float32 computes it
exactly in any order of summation. The scale has so few bits that its product with the sum is exact, too. Only the
addition of the bias rounds, once. Therefore every runtime that follows IEEE float32 gives the same bits, whether or
not it fuses these operations.
"""

from __future__ import annotations

from torch import nn

from svitc.ir import standalone_layers
from svitc.ir.standalone_layers import QuantizedConv1d, QuantizedConv2d, QuantizedLinear

WEIGHTS = ("fp32", "int8")
EXACT = 1 << 24  # float32 represents integers up to this one exactly, so sums below it are exact in any order


class FixedPoint(standalone_layers.FixedPoint):
    """Conversion of a real input to an integer number of steps: ``clamp(round(x / step), -limit, limit)``.

    Halves are rounded to even numbers.

    Args:
        step: input value of one step; a power of two, so that the quotient is exact.
        limit: largest number of steps.
    """

    step: float
    limit: int

    def __init__(self, step: float, limit: int) -> None:
        super().__init__(step, limit)

    def extra_repr(self) -> str:
        return f"step={self.step}, limit={self.limit}"


QUANTIZED = {nn.Conv1d: QuantizedConv1d, nn.Conv2d: QuantizedConv2d, nn.Linear: QuantizedLinear}

WIDE_BITS = 16  # of weights that keep what float32 has, in effect; an integer product reads them as two planes of bytes
BITS = (8, 4, 2)  # numbers of bits of a weight among which policies choose
TERNARY = 1  # stands for weights of -1, 0 and 1: one bit and a sign, stored in two bits
LEVELS = {8: 127, 4: 7, 2: 3, TERNARY: 1}  # bits -> largest integer weight

__all__ = [
    "BITS",
    "EXACT",
    "LEVELS",
    "QUANTIZED",
    "TERNARY",
    "WEIGHTS",
    "WIDE_BITS",
    "FixedPoint",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedLinear",
]
