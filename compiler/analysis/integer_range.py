"""Grids: which values of a program are whole numbers, times one known factor, and how large they can become.

Spikes are 0 or 1; pools, sums, products and matrix products of whole numbers are whole numbers. What is computed on a
grid is exact in float32 while it stays below 2^24 units, whatever the order.
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
from svitc.ir.program import Program


@dataclass(frozen=True)
class IntegerRange:
    """A value that is ``unit`` times a whole number from ``low`` to ``high``."""

    unit: float
    low: int
    high: int

    @property
    def bound(self) -> int:
        return max(-self.low, self.high)

    @property
    def is_byte(self) -> bool:
        """Whether the numbers fit uint8 or int8."""
        return (self.low >= 0 and self.high <= 255) or self.is_signed_byte

    @property
    def is_signed_byte(self) -> bool:
        """Whether they fit int8 and only int8."""
        return -128 <= self.low < 0 and self.high <= 127

    def times(self, other: IntegerRange, terms: int = 1) -> IntegerRange:
        """Of a sum of ``terms`` products."""
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return IntegerRange(self.unit * other.unit, terms * min(corners), terms * max(corners))


def integer_ranges(program: Program) -> dict[fx.Node, IntegerRange]:
    """The grid of every value that lies on one; a value that is missing is real."""
    found: dict[fx.Node, IntegerRange] = {}
    for node in program.graph.nodes:
        grid = _grid(program, node, found)
        if grid is not None:
            found[node] = grid
    return found


def _grid(program: Program, node: fx.Node, found: dict[fx.Node, IntegerRange]) -> IntegerRange | None:
    module = program.module_of(node)
    if module is not None:
        return _of_layer(module, found.get(node.all_input_nodes[0]))
    inputs = [found.get(each) for each in node.all_input_nodes]
    if not inputs or None in inputs:
        return None
    first: Any = inputs[0]
    if node.op == "output" or node.target in ops.VIEWS or node.target in (ops.take_block, ops.take_range):
        return first
    if node.target in ops.REDUCTIONS:
        gone: Any = node.kwargs["dim"]
        size = axes.size(a for i in gone for a in program.type_of(node.all_input_nodes[0])[i])
        total = IntegerRange(first.unit, first.low * size, first.high * size)
        return _scaled(total, 1 / size) if node.target is torch.mean else total
    if len(node.args) == 2 and not all(isinstance(each, fx.Node) for each in node.args):
        number: Any = next(each for each in node.args if not isinstance(each, fx.Node))
        return _scaled(first, 1 / number if node.target is operator.truediv else number)
    second: Any = found[node.args[1]]  # type: ignore[index]
    if node.target is torch.matmul:
        return first.times(second, program.shape_of(node.all_input_nodes[0])[-1])
    if node.target is operator.mul:
        return first.times(second)
    if node.target in (operator.add, operator.sub) and first.unit == second.unit:
        sign = 1 if node.target is operator.add else -1
        ends = sorted((sign * second.low, sign * second.high))
        return IntegerRange(first.unit, first.low + ends[0], first.high + ends[1])
    return None


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
        window = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,) * 2
        size = math.prod(window)
        if module.divisor_override or module.ceil_mode or (any(_pair(module.padding)) and not module.count_include_pad):
            return None  # not every window has the same divisor
        return _scaled(IntegerRange(source.unit, min(0, source.low) * size, max(0, source.high) * size), 1 / size)
    if isinstance(module, nn.ZeroPad2d):
        return replace(source, low=min(0, source.low), high=max(0, source.high))
    return None


def _scaled(grid: IntegerRange, factor: float) -> IntegerRange | None:
    """By a power of two exactly; by any other number the product would round."""
    return replace(grid, unit=grid.unit * factor) if factor > 0 and math.frexp(factor)[0] == 0.5 else None


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def runs_in_floats(layer: Any, grid: IntegerRange | None) -> bool:
    """Whether a layer is lowered to a float operation instead of an integer matrix product; ``grid`` of its input."""
    return getattr(layer, "groups", 1) > 1 or grid is None or not grid.is_byte
