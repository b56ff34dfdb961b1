"""Integer ranges: which values of a program are integers times one fixed unit, and how large these can become.

Spikes are 0 or 1; pools, sums, products and matrix products of integers are integers. A sum of integers is exact in
float32, in any order, as long as it stays below 2^24 units.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from svitc.ir import axes, ops
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.operators import pointwise
from svitc.ir.operators.registry import operator_of
from svitc.ir.operators.table import Operator
from svitc.ir.program import Program
from svitc.ir.quantized_modules import WIDE_BITS

ZERO_BYTE = 128
IMAGE_CHANNELS = 4  # the most channels of an input that count as an image


@dataclass(frozen=True)
class IntegerRange:
    """A value that is ``unit`` times an integer from ``low`` to ``high``."""

    unit: float
    low: int
    high: int

    @property
    def bound(self) -> int:
        """Return the largest magnitude of the integers."""
        return max(-self.low, self.high)

    @property
    def is_byte(self) -> bool:
        """Return whether the integers fit uint8 or int8."""
        return (self.low >= 0 and self.high <= 255) or self.is_signed_byte

    @property
    def is_signed_byte(self) -> bool:
        """Return whether some integers are negative and all fit int8."""
        return -128 <= self.low < 0 and self.high <= 127

    @property
    def largest_byte(self) -> int:
        """Return the largest byte of an integer product's operand; 128 stands for 0 where some numbers are negative."""
        return self.high + (ZERO_BYTE if self.is_signed_byte else 0)

    def times(self, other: IntegerRange, terms: int = 1) -> IntegerRange:
        """Return the range of a sum of ``terms`` products of the two values."""
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return IntegerRange(self.unit * other.unit, terms * min(corners), terms * max(corners))


def integer_ranges(program: Program) -> dict[fx.Node, IntegerRange]:
    """Return the integer range of every value that has one; a value that is missing is real."""
    ranges: dict[fx.Node, IntegerRange] = {}
    for node in program.graph.nodes:
        value_range = _range_of(program, node, ranges)
        if value_range is not None:
            ranges[node] = value_range
    return ranges


def _range_of(program: Program, node: fx.Node, ranges: dict[fx.Node, IntegerRange]) -> IntegerRange | None:
    module = program.module_of(node)
    if module is not None:
        return _of_layer(module, ranges.get(node.all_input_nodes[0]))
    if not node.all_input_nodes or any(source not in ranges for source in node.all_input_nodes):
        return None
    first = ranges[node.all_input_nodes[0]]
    if node.op == "output":
        return first if len(node.all_input_nodes) == 1 else None
    if node.target in ops.VIEWS or node.target in (ops.take_block, ops.take_range):
        return first
    if node.target in ops.REDUCTIONS:
        reduced: Any = node.kwargs["dim"]
        size = axes.size(axis for dim in reduced for axis in program.type_of(node.all_input_nodes[0])[dim])
        total = IntegerRange(first.unit, first.low * size, first.high * size)
        return _scaled(total, 1 / size) if node.target is torch.mean else total
    general = operator_of(node.target)
    if general is not None:
        return _of_operator(node, general, [ranges[source] for source in node.all_input_nodes])
    if node.target not in (*ops.ELEMENTWISE, torch.matmul):
        return None
    if not all(isinstance(arg, fx.Node) for arg in node.args):
        number: Any = next(arg for arg in node.args if not isinstance(arg, fx.Node))
        return _scaled(first, 1 / number if node.target is operator.truediv else number)
    second = ranges[node.args[1]]  # type: ignore[index]
    if node.target is torch.matmul:
        return first.times(second, program.shape_of(node.all_input_nodes[0])[-1])
    if node.target is operator.mul:
        return first.times(second)
    if node.target in (operator.add, operator.sub) and first.unit == second.unit:
        sign = 1 if node.target is operator.add else -1
        ends = sorted((sign * second.low, sign * second.high))
        return IntegerRange(first.unit, first.low + ends[0], first.high + ends[1])
    return None


def _of_operator(node: fx.Node, general: Operator, sources: list[IntegerRange]) -> IntegerRange | None:
    """Return the range of a general operator's value, given those of its inputs."""
    first = sources[0]
    if general.moves:
        if any(source.unit != first.unit for source in sources):
            return None
        return replace(first, low=min(0, *(s.low for s in sources)), high=max(0, *(s.high for s in sources)))
    if general.function is pointwise.relu:
        return replace(first, low=max(0, first.low), high=max(0, first.high))
    if general.function is pointwise.negative:
        return replace(first, low=-first.high, high=-first.low)
    number: Any = node.kwargs.get("number")
    if general.function not in (pointwise.add_number, pointwise.subtract_from) or (number / first.unit) % 1:
        return None
    shift = int(number / first.unit)
    if general.function is pointwise.add_number:
        return replace(first, low=first.low + shift, high=first.high + shift)
    return replace(first, low=shift - first.high, high=shift - first.low)


def _of_layer(module: nn.Module, source: IntegerRange | None) -> IntegerRange | None:
    if isinstance(module, ops.FixedPoint):
        return IntegerRange(1.0, -module.limit, module.limit)
    if ops.is_neuron(module):
        return IntegerRange(1.0, 0, dynamics_of(module).max_spikes)
    if source is None:
        return None
    if isinstance(module, nn.MaxPool2d):
        return source
    if isinstance(module, nn.AvgPool2d):
        size = math.prod(_pair(module.kernel_size))
        if module.divisor_override or module.ceil_mode or (any(_pair(module.padding)) and not module.count_include_pad):
            return None  # the windows have different divisors
        return _scaled(IntegerRange(source.unit, min(0, source.low) * size, max(0, source.high) * size), 1 / size)
    if isinstance(module, nn.ZeroPad2d):
        return replace(source, low=min(0, source.low), high=max(0, source.high))
    return None


def _scaled(value_range: IntegerRange, factor: float) -> IntegerRange | None:
    """Return the range times a power of two; None for any other factor, whose products would be rounded."""
    return replace(value_range, unit=value_range.unit * factor) if factor > 0 and math.frexp(factor)[0] == 0.5 else None


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def runs_in_floats(layer: Any, input_range: IntegerRange | None, bits: int | None = None) -> bool:
    """Return whether a layer is lowered to a float operation instead of an integer matrix product.

    Args:
        layer: a convolution or linear layer.
        input_range: integer range of its input; None where that is real.
        bits: bits of its weights; by default those of a quantized layer.
    """
    if getattr(layer, "groups", 1) > 1 or input_range is None or not input_range.is_byte:
        return True
    # the coarse steps of an image: beside bytes with a sign, an integer product's planes would hold only 13 bits
    wide = (getattr(layer, "bits", 8) if bits is None else bits) == WIDE_BITS
    return wide and input_range.is_signed_byte and layer.weight.shape[1] <= IMAGE_CHANNELS
