"""Ranges of the values of an ONNX model, by interval arithmetic from the inputs to the outputs.

Only what bounds integers is followed: comparisons, clipping, casts, elementwise arithmetic, pools, and whatever moves
elements. Everything else can be anything that its type holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

INTEGERS = {
    ir.DataType.BOOL: (0, 1),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT2: (0, 3),
    ir.DataType.INT2: (-2, 1),
}


class Range(NamedTuple):
    """All that a value's elements can be.

    Attributes:
        low: the least number.
        high: the largest number.
        dtype: the element type, where it is known.
    """

    low: float = -math.inf
    high: float = math.inf
    dtype: ir.DataType | None = None

    def hull(self, *others: Range) -> Range:
        """Return the smallest range that holds this one and others."""
        return self._replace(
            low=min(self.low, *(o.low for o in others)), high=max(self.high, *(o.high for o in others))
        )


def value_ranges(model: ir.Model) -> dict[ir.Value, Range]:
    """Return the range of every value of a model's graph; the bodies of its functions are looked into at each call."""
    return _of_graph(model, model.graph, {})


def _of_graph(model: ir.Model, graph: ir.Graph, inputs: Mapping[ir.Value, Range]) -> dict[ir.Value, Range]:
    """Return the range of every value of a graph, given those of its inputs."""
    ranges = dict(inputs)
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in ranges:
                ranges[value] = _source(value)
        outputs = _of_node(model, node, ranges)
        for value, found in zip(node.outputs, outputs, strict=False):
            ranges[value] = (
                found if found.dtype is not None or value.dtype is None else found._replace(dtype=value.dtype)
            )
    return ranges


def _source(value: ir.Value) -> Range:
    """Return the range of an input of the graph, or of a constant."""
    if value.const_value is None:
        return _of_type(value.dtype)
    numbers = value.const_value.numpy()
    if not numbers.size or numbers.dtype.kind in "SUO":
        return _of_type(value.dtype)
    numbers = numbers.astype(np.float64)
    return Range(float(numbers.min()), float(numbers.max()), value.const_value.dtype)


def _of_type(dtype: ir.DataType | None) -> Range:
    return Range(*INTEGERS.get(dtype, (-math.inf, math.inf)), dtype)  # type: ignore[arg-type]


def _of_node(model: ir.Model, node: ir.Node, ranges: Mapping[ir.Value, Range]) -> list[Range]:
    """Return the ranges of a node's outputs."""
    inputs = [Range() if value is None else ranges[value] for value in node.inputs]
    function = model.functions.get(node.op_identifier())
    if function is not None:
        inside = _of_graph(model, function.graph, dict(zip(function.graph.inputs, inputs, strict=False)))
        return [inside.get(value, Range()) for value in function.graph.outputs]
    rule = RULES.get(node.op_type)
    if rule is None or node.domain:
        return [_of_type(value.dtype) for value in node.outputs]
    return [rule(node, inputs)] * len(node.outputs)


Rule = Callable[[ir.Node, list[Range]], Range]


def _first(node: ir.Node, inputs: list[Range]) -> Range:
    """Return the range of an operation that moves or selects elements, or averages them."""
    return inputs[0]


def _all(node: ir.Node, inputs: list[Range]) -> Range:
    """Return the range of an operation each of whose elements is one of an input."""
    return inputs[0].hull(*inputs[1:]) if len(inputs) > 1 else inputs[0]


def _with_zero(node: ir.Node, inputs: list[Range]) -> Range:
    """Return the range of an operation that pads with zeros, or with its third input."""
    padding = inputs[2] if node.op_type == "Pad" and len(inputs) > 2 and node.inputs[2] is not None else Range(0, 0)
    return inputs[0].hull(padding)


def _monotone(function: Callable[[float], float]) -> Rule:
    """Return the rule of a function that never falls."""

    def rule(node: ir.Node, inputs: list[Range]) -> Range:
        low, high = (function(x) if math.isfinite(x) else x for x in inputs[0][:2])
        return inputs[0]._replace(low=low, high=high)

    return rule


def _corners(function: Callable[[float, float], float]) -> Rule:
    """Return the rule of an operation whose extremes are at the corners of its operands' ranges."""

    def rule(node: ir.Node, inputs: list[Range]) -> Range:
        total = inputs[0]
        for other in inputs[1:]:
            ends = [function(a, b) for a, b in product(total[:2], other[:2])]
            total = Range(min(ends), max(ends), total.dtype) if not any(map(math.isnan, ends)) else Range()
        return _stored(total, total.dtype)

    return rule


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _divided(a: float, b: float) -> float:
    return a / b if b and not math.isinf(b) else math.nan


def _quotient(node: ir.Node, inputs: list[Range]) -> Range:
    return _corners(_divided)(node, inputs) if inputs[1].low > 0 or inputs[1].high < 0 else Range()


def _clip(node: ir.Node, inputs: list[Range]) -> Range:
    x, *ends = inputs
    low = max(x.low, ends[0].low) if ends and node.inputs[1] is not None else x.low
    high = min(x.high, ends[1].high) if len(ends) > 1 and node.inputs[2] is not None else x.high
    return x._replace(low=min(low, high), high=high)


def _binary(node: ir.Node, inputs: list[Range]) -> Range:
    return Range(0, 1, ir.DataType.BOOL)


def _cast(node: ir.Node, inputs: list[Range]) -> Range:
    dtype = ir.DataType(node.attributes["to"].as_int())
    return Range(0, 1, dtype) if dtype == ir.DataType.BOOL else _stored(inputs[0], dtype)


def _stored(found: Range, dtype: ir.DataType | None) -> Range:
    """Return the range of numbers in an element type; integers beyond it wrap around."""
    limits = INTEGERS.get(dtype)  # type: ignore[arg-type]
    if limits is None:
        return found._replace(dtype=dtype)
    if not limits[0] <= found.low <= found.high <= limits[1]:
        return Range(*limits, dtype)
    return Range(math.floor(found.low), math.ceil(found.high), dtype)


def _quantize(node: ir.Node, inputs: list[Range]) -> Range:
    """Return the range of ``QuantizeLinear``: rounded quotients around the zero point, kept within the type."""
    x, step, *zero = inputs
    dtype = zero[0].dtype if zero else ir.DataType.UINT8
    low, high = INTEGERS.get(dtype, (-math.inf, math.inf))  # type: ignore[arg-type]
    ends = [_divided(a, b) + z for a, b, z in product(x[:2], step[:2], zero[0][:2] if zero else (0,))]
    if step.low > 0 and all(map(math.isfinite, ends)):
        low, high = (max(low, min(high, end)) for end in (math.floor(min(ends)), math.ceil(max(ends))))
    return Range(low, high, dtype)


def _dequantize(node: ir.Node, inputs: list[Range]) -> Range:
    x, step, *zero = inputs
    shifted = _corners(lambda a, b: a - b)(node, [x._replace(dtype=None), zero[0]]) if zero else x
    return _corners(_times)(node, [shifted._replace(dtype=None), step])


def _matrix_product(node: ir.Node, inputs: list[Range]) -> Range:
    """Return the range of ``MatMulInteger``: so many products of numbers less their zero points."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    terms = shape[-1] if shape is not None and len(shape) else None
    if not isinstance(terms, int):
        return Range()
    less = _corners(lambda a, b: a - b)
    sides = [
        less(node, [inputs[i]._replace(dtype=None), inputs[i + 2]]) if len(inputs) > i + 2 else inputs[i]
        for i in (0, 1)
    ]
    one = _corners(_times)(node, [side._replace(dtype=None) for side in sides])
    return Range(terms * one.low, terms * one.high, ir.DataType.INT32)


def _sum_along(node: ir.Node, inputs: list[Range]) -> Range:
    """Return the range of ``ReduceSum`` along dimensions of known size."""
    x, axes = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    if x is None or x.shape is None or axes is None or axes.const_value is None:
        return Range()
    sizes = [x.shape[int(axis)] for axis in axes.const_value.numpy().reshape(-1)]
    if not all(isinstance(size, int) for size in sizes):
        return Range()
    count = math.prod(size for size in sizes if isinstance(size, int))
    return inputs[0]._replace(low=_times(count, inputs[0].low), high=_times(count, inputs[0].high))


def _nearest(x: float) -> float:
    return float(np.round(x))


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("Expand", "Flatten", "Gather", "Identity", "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "Reshape"),
        _first,
    ),
    **dict.fromkeys(("GlobalAveragePool", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"), _first),
    **dict.fromkeys(("Concat", "Max", "Mean", "Min"), _all),
    **dict.fromkeys(("AveragePool", "Pad"), _with_zero),
    **dict.fromkeys(("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor"), _binary),
    **dict.fromkeys(("Add", "Sum"), _corners(lambda a, b: a + b)),
    "Sub": _corners(lambda a, b: a - b),
    "Mul": _corners(_times),
    "Div": _quotient,
    "Where": lambda node, inputs: inputs[1].hull(inputs[2]),
    "Neg": lambda node, inputs: inputs[0]._replace(low=-inputs[0].high, high=-inputs[0].low),
    "Relu": lambda node, inputs: inputs[0]._replace(low=max(0.0, inputs[0].low), high=max(0.0, inputs[0].high)),
    "Round": _monotone(_nearest),
    "Floor": _monotone(math.floor),
    "Ceil": _monotone(math.ceil),
    "Clip": _clip,
    "Cast": _cast,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "MatMulInteger": _matrix_product,
    "ReduceSum": _sum_along,
}
__all__ = ["Range", "value_ranges"]
