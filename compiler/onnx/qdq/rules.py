"""Rules of the QDQ lowering; operations without a rule here have that of a float file (float_rules.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn

from svitc.analysis.integer_range import IntegerRange, runs_in_floats
from svitc.ir import ops
from svitc.ir.axes import Dim, Dims, size
from svitc.ir.quantized_modules import QUANTIZED, WIDE_BITS
from svitc.onnx import float_rules, layout
from svitc.onnx.builder import Stored, as_array
from svitc.onnx.fixed_point import fixed_point
from svitc.onnx.float_rules import LoweringRule
from svitc.onnx.matrix_order import moves_less_transposed, transposed
from svitc.onnx.qdq.builder import QdqBuilder
from svitc.onnx.qdq.neurons import neuron
from svitc.quantization import planes
from svitc.quantization.pair_bound import largest_pair, pair_limit
from svitc.quantization.weight_grid import stored_bits

Rule = LoweringRule[QdqBuilder, Stored]
Projection = nn.Conv1d | nn.Conv2d | nn.Linear


def projection(b: QdqBuilder, node: fx.Node, module: Projection) -> Stored:
    """Lower a convolution or linear layer with integer weights: a product, and the bias directly behind it.

    What reads one pixel or token for each that it writes is a matrix product of rows, channels last, whose result a
    neuron splits into time steps without copying it; but not where only pooling reads it, which needs an image.
    """
    source, path = b.at(node.args[0]), str(node.target)
    view = layout.fresh(b.program.type_of(node))
    pointwise = _is_pointwise(module) and not _is_pooled(b, node)
    channel = len(view) - 1 if isinstance(module, nn.Linear) else 1
    dims, out = (_rows(v, channel) if pointwise else layout.physical(v) for v in (source.view, view))
    numbers = b.ranges.get(node.all_input_nodes[0])
    in_floats = numbers is None or runs_in_floats(module, numbers) or _saturates(module, numbers)
    x = b.read(source, dims) if numbers is None or in_floats else b.through_bytes(source, numbers, dims)
    weights, scale = module.weight.numpy(), module.get_buffer("scale").numpy()
    bias = as_array(module.get_buffer("bias"))
    axis = 0
    if pointwise:
        weights, axis = np.ascontiguousarray(weights.reshape(len(weights), -1).T), 1
    else:
        bias = bias.reshape(-1, *(1,) * (weights.ndim - 2))
    column = scale.reshape([-1 if i == axis else 1 for i in range(weights.ndim)])
    wide = stored_bits(module.get_buffer("weight")) == WIDE_BITS and not in_floats
    if wide:
        high, low, base = planes.split(weights)
        weight = b.scaled_weights(path, low, scale, axis, packs=False)
    elif not in_floats:
        weight = b.scaled_weights(path, weights, scale, axis)
    elif pointwise:  # not as bytes: OpenVINO may quantize real numbers that meet them in a MatMul
        weight = b.small(f"{path}.weight", weights * column)
    else:
        weight = b.widened(f"{path}.weight", weights, column, 1.0)

    def product(weight: ir.Value, helper: str | None = None) -> ir.Value:
        if pointwise:
            return b.op("MatMul", [x, weight], out, helper=helper)
        attributes = float_rules.convolution_attributes(module)  # type: ignore[arg-type]
        return b.op("Conv", [x, weight], out, attributes, helper=helper)

    value = b.op("Add", [product(weight), b.small(f"{path}.bias", bias)], out, helper="add_bias")
    if wide:
        weight = b.scaled_weights(f"{path}.high", high, scale * np.float32(base), axis, packs=False)
        plane = product(weight, helper="high")
        value = b.op("Add", [value, plane], out, helper="planes")
    return _channels_last(b, node, b.store(value, out, view))


def _channels_last(b: QdqBuilder, node: fx.Node, x: Stored) -> Stored:
    """Store an image as a matrix of pixels by channels, as kernels for bytes write it, unless only pooling reads it.

    A neuron then splits it into time steps without copying, and OpenVINO neither copies for the Transpose.
    """
    if len(x.dims) != 4 or _is_pooled(b, node):
        return x
    dims = _rows(x.dims, 1)
    return b.store(b.read(x, dims), dims, x.view)


def _is_pooled(b: QdqBuilder, node: fx.Node) -> bool:
    """Return whether only pooling layers read a value."""
    return all(isinstance(b.program.module_of(user), nn.MaxPool2d | nn.AvgPool2d) for user in node.users)


def max_pool(b: QdqBuilder, node: fx.Node, module: nn.MaxPool2d) -> Stored:
    """Lower a max pooling layer, which reads bytes where it can."""
    source, numbers = b.at(node.args[0]), b.ranges.get(node.all_input_nodes[0])
    view, dims = layout.fresh(b.program.type_of(node)), layout.physical(source.view)
    if numbers is not None and not numbers.is_byte:
        numbers = None
    x = b.read(source, dims) if numbers is None else b.through_bytes(source, numbers, dims)
    value = b.op("MaxPool", [x], layout.physical(view), float_rules.max_pool_attributes(node, module))
    pooled = _channels_last(b, node, b.store(value, layout.physical(view), view))
    if numbers is not None:
        b.from_bytes.add(pooled.value)
    return pooled


def _saturates(module: Projection, numbers: IntegerRange) -> bool:
    """Return whether two neighbouring products could exceed int16, which processors without VNNI add them in.

    Only weights that were trained on a grid of eight bits can: quantization bounds all others, and planes of 16 bits.
    """
    if stored_bits(module.get_buffer("weight")) == WIDE_BITS:
        return False
    return int(largest_pair(module.get_buffer("weight").int()).max()) > pair_limit(numbers.largest_byte)


def _is_pointwise(module: Projection) -> bool:
    """Return whether a layer reads one pixel or token for each that it writes, and all channels of it."""
    if isinstance(module, nn.Linear):
        return True
    size_one = all(k == 1 for k in module.kernel_size) and set(module.stride) == {1}
    return size_one and not any(module.padding) and module.groups == 1


def _rows(view: Dims, channel: int) -> Dims:
    """Return the layout of a matrix with the channels as columns and everything else as rows."""
    return (tuple(token for i, dim in enumerate(view) if i != channel for token in dim), view[channel])


def matmul(b: QdqBuilder, node: fx.Node, _: None) -> Stored:
    """Lower a matrix product of two activations, transposed if that moves fewer elements."""
    left, right = b.at(node.args[0]), b.at(node.args[1])
    view = layout.fresh((*left.view[:-1], right.view[-1]))
    operands = [(s, layout.physical(s.view, keep=2)) for s in (left, right)]
    dims = layout.physical(view, keep=2)
    if moves_less_transposed(b.program, node, [(s.dims, d) for s, d in operands], dims):
        operands, dims = [(s, transposed(d)) for s, d in reversed(operands)], transposed(dims)
    return b.store(b.op("MatMul", [b.read(s, d) for s, d in operands], dims), dims, view)


def block(b: QdqBuilder, node: fx.Node, _: None) -> Stored:
    """Lower one of the equal blocks of a dimension."""
    source, dim, index, count = node.args
    assert isinstance(source, fx.Node) and isinstance(dim, int) and isinstance(count, int) and isinstance(index, int)
    rest = layout.blocks(b.at(source).view[dim], count)
    if _is_apart(b.at(source), dim):
        return _part(b, node, [rest] * count, [size(rest)] * count, index)
    return float_rules.block(b, node, None)


def part(b: QdqBuilder, node: fx.Node, _: None) -> Stored:
    """Lower a range of a dimension; the ranges together must cover it."""
    source, dim = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(dim, int)
    readers = sorted((u for u in source.users if u.target is ops.take_range), key=lambda u: int(u.args[2]))  # type: ignore[arg-type]
    widths = [int(u.args[3]) - int(u.args[2]) for u in readers]  # type: ignore[arg-type]
    if not _is_apart(b.at(source), dim) or sum(widths) != size(b.at(source).view[dim]):
        return float_rules.part(b, node, None)
    key = ("rests", source, dim)
    if key not in b.cache:
        b.cache[key] = [layout.fresh(b.program.type_of(u))[dim] for u in readers]
    return _part(b, node, b.cache[key], widths, readers.index(node))


def _is_apart(x: Stored, dim: int) -> bool:
    """Return whether a dimension of the program is a dimension of the stored value, so that it can be split there."""
    return x.value is not None and not x.constant_along and x.view[dim] != () and x.view[dim] in x.dims


def _part(b: QdqBuilder, node: fx.Node, rests: Sequence[Dim], widths: Sequence[int], index: int) -> Stored:
    """Return one part of a stored dimension; one Split gives all of them.

    Args:
        b: builder that the nodes are emitted to.
        node: the part; its first argument is what is split, the second the dimension.
        rests: tokens that remain of the dimension in each part.
        widths: size of each part.
        index: which part it is.
    """
    source, dim = node.args[:2]
    assert isinstance(dim, int)
    x = b.at(source)
    axis = x.dims.index(x.view[dim])
    outs = [(*x.dims[:axis], rest, *x.dims[axis + 1 :]) for rest in rests]
    key = ("parts", source, dim, tuple(widths))
    if key not in b.cache:
        inputs = [b.read(x, x.dims), b.integers("split", widths)]
        b.cache[key] = b.ops("Split", inputs, outs, {"axis": axis}, helper="split")
    return b.store(b.cache[key][index], outs[index], (*x.view[:dim], rests[index], *x.view[dim + 1 :]))


MODULE_RULES: dict[type, Rule] = {
    **dict.fromkeys(QUANTIZED.values(), projection),  # first: they are subclasses of float layers
    **float_rules.MODULE_RULES,
    nn.MaxPool2d: max_pool,
    **dict.fromkeys((*ops.STATEFUL_NEURONS, *ops.STATELESS_NEURONS), neuron),
    ops.FixedPoint: partial(fixed_point, as_stored=True),
}
FUNCTION_RULES: dict[Any, Rule] = {
    **float_rules.FUNCTION_RULES,
    torch.matmul: matmul,
    ops.take_block: block,
    ops.take_range: part,
}
__all__ = ["FUNCTION_RULES", "MODULE_RULES"]
