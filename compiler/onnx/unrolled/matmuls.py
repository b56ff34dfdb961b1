"""Products of a quantized program: integer matrix products, gathered patches, and float convolutions that are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn

from svitc.analysis.integer_range import integer_ranges, runs_in_floats
from svitc.ir import ops
from svitc.ir.axes import Dims, Kind, size
from svitc.ir.program import Program
from svitc.ir.quantized_modules import EXACT
from svitc.onnx import layout
from svitc.onnx.builder import FLOAT
from svitc.onnx.unrolled.builder import I32, Steps, UnrolledBuilder, timeless
from svitc.onnx.unrolled.im2col import kernel_of, patches
from svitc.onnx.unrolled.step_gain import factor
from svitc.quantization.weight_grid import stored_bits


def dense(b: UnrolledBuilder, node: fx.Node, module: Any) -> Steps:
    """A convolution or linear layer of bytes as one integer matrix product a step, ``[rows, in] x [in, out]``.

    Where the target's integer products do not take numbers so large it is one of floats, whose sums are as whole.
    """
    x = b.of(node.args[0])
    view = b.fresh_view(node)
    channel = len(view) - 1 if isinstance(module, nn.Linear) else 1
    dims = _rows(timeless(view), channel)
    path = str(node.target)
    weight, grid = module.weight.numpy(), b.grids[node.all_input_nodes[0]]
    zero = [b.zero_point] if b.nothing(grid) else []
    if _pointwise(module):
        kernel = weight.reshape(weight.shape[0], -1).T
        read: Any = lambda t: b.operand(x, t, _rows(x.timeless, channel), grid)  # noqa: E731
    else:
        kernel = kernel_of(weight)
        read = lambda t: patches(b, x, t, module, grid)  # noqa: E731
    gain = b.gains.get(node, 0)

    def each(t: int) -> ir.Value:
        rows = read(t)
        if rows.type == FLOAT:
            sums, unit = b.op("MatMul", [rows, b.widened(f"{path}.weight", kernel, None, 1.0)], dims), 1.0
        else:
            sums, unit = (
                b.op("MatMulInteger", [rows, b.packed(f"{path}.weight", kernel), *zero], dims, dtype=I32),
                grid.unit,
            )
        return b.rescaled(path, sums, module, unit, factor(gain, t), dims)

    return Steps(b.each(len(x.values), each), dims, view, gain=gain)


def stored_widths(program: Program) -> set[int]:
    """The bits that weights of integer products could be stored in."""
    known = integer_ranges(program)
    found = set()
    for node in program.graph.nodes:
        module: Any = program.module_of(node)
        if ops.is_quantized(module) and not runs_in_floats(module, known.get(node.all_input_nodes[0])):
            found.add(stored_bits(module.weight))
    return found


def _rows(view: Dims, channel: int) -> Dims:
    """All but the channels as rows."""
    return (tuple(token for i, dim in enumerate(view) if i != channel for token in dim), view[channel])


def _pointwise(module: Any) -> bool:
    if isinstance(module, nn.Linear):
        return True
    return all(k == 1 for k in module.kernel_size) and set(module.stride) == {1} and not any(module.padding)


def in_floats(b: UnrolledBuilder, node: fx.Node, module: Any) -> Steps:
    """A convolution or linear layer in floats; exact where its input lies on a grid."""
    return (
        _product(b, node, module)
        if _pointwise(module) and getattr(module, "groups", 1) == 1
        else _convolution(b, node, module)
    )


def _product(b: UnrolledBuilder, node: fx.Node, module: Any) -> Steps:
    """``[rows, in] x [in, out]``; a gain goes into the rows, so that all steps share the weights."""
    x, view, path = b.of(node.args[0]), b.fresh_view(node), str(node.target)
    gain = b.gains.get(node, 0)
    channel = len(view) - 1 if isinstance(module, nn.Linear) else 1
    source, dims = _rows(x.timeless, channel), _rows(timeless(view), channel)
    if ops.is_quantized(module):
        whole = np.ascontiguousarray(module.weight.numpy().reshape(len(module.weight), -1).T)
        weight = b.widened(f"{path}.weight", whole, module.scale.numpy()[None], 1.0)
    else:
        flat = module.weight.detach().reshape(len(module.weight), -1)
        weight = b.weight(f"{path}.weight", flat, transpose=True)
    bias = None if module.bias is None else module.bias.detach().numpy()

    def each(t: int) -> ir.Value:
        rows = b.read_step(x, t, source)
        rows = b.times(rows, factor(gain, t), source) if gain else rows
        product = b.op("MatMul", [rows, weight], dims)
        if bias is None:
            return product
        return b.op("Add", [product, b.gained(f"{path}.bias", bias, factor(gain, t))], dims, helper="add_bias")

    return Steps(b.each(b.steps if gain else len(x.values), each), dims, view, gain=gain)


def _convolution(b: UnrolledBuilder, node: fx.Node, module: Any) -> Steps:
    """Channels first, as the operator wants it."""
    x, view, path = b.of(node.args[0]), b.fresh_view(node), str(node.target)
    dims, gain = timeless(view), b.gains.get(node, 0)

    def weights(by: float) -> list[ir.Value]:
        if ops.is_quantized(module):
            scale = module.scale.numpy().reshape(-1, *(1,) * (module.weight.ndim - 1))
            value = b.widened(f"{path}.weight", module.weight.numpy(), scale, by)
            return [value, b.gained(f"{path}.bias", module.bias.numpy(), by)]
        found = [b.weight(f"{path}.weight", module.weight)]
        return found if module.bias is None else [*found, b.weight(f"{path}.bias", module.bias)]

    attributes = {
        "kernel_shape": list(module.kernel_size),
        "pads": [int(p) for p in module.padding] * 2,
        "strides": list(module.stride),
        "group": module.groups,
        "dilations": list(module.dilation),
    }

    def each(t: int) -> ir.Value:
        return b.op("Conv", [b.read_step(x, t, x.timeless), *weights(factor(gain, t))], dims, attributes)

    return b.channels_last(node, Steps(b.each(b.steps if gain else len(x.values), each), dims, view, gain=gain))


def matrix_product(b: UnrolledBuilder, node: fx.Node) -> Steps:
    """A product of two values, in whichever orientation moves less; of bytes it is an integer one."""
    left, right = (b.of(each) for each in node.args[:2])
    known = [b.grids.get(each) for each in node.args[:2]]  # type: ignore[arg-type]
    view = layout.fresh((*left.view[:-1], right.view[-1]))
    bound = b.grids.get(node)
    whole = all(b.fits(grid) for grid in known) and bound is not None and bound.bound < EXACT
    units = [grid.unit if grid is not None else 1.0 for grid in known]
    wanted = [(left, _matrices(left.timeless)), (right, _matrices(right.timeless))]
    dims = _matrices(timeless(view))
    turned = [(right, _turned(wanted[1][1])), (left, _turned(wanted[0][1]))]
    later = size(layout.flat(dims)) if _read_turned(b, node) else 0
    if _moves(turned, _turned(dims)) < _moves(wanted, dims) + later:  # (a b)' = b' a'
        wanted, dims, units = turned, _turned(dims), units[::-1]

    def each(t: int) -> ir.Value:
        kind = b.spike if whole else FLOAT
        inputs = [b.read_step(s, t, d, kind, u) for (s, d), u in zip(wanted, units, strict=True)]
        return b.op("MatMulInteger", inputs, dims, dtype=I32) if whole else b.op("MatMul", inputs, dims)

    values = b.each(max(len(left.values), len(right.values)), each)
    return Steps(values, dims, view, I32, units[0] * units[1]) if whole else Steps(values, dims, view)


def _moves(sides: list[tuple[Steps, Dims]], dims: Dims) -> int:
    """Elements that change their innermost neighbours: of the operands, and of a result that is not channels last."""
    total = sum(size(layout.flat(d)) for s, d in sides if layout.flat(s.dims)[-len(d[-1]) :] != d[-1])
    return total + (size(layout.flat(dims)) if any(token.kind != Kind.CHANNEL for token in dims[-1]) else 0)


def _read_turned(b: UnrolledBuilder, node: fx.Node) -> bool:
    """Whether a value is read as ``q' value'`` alone, since ``value q`` would not lie with its channels last."""
    readers = [user for user in node.users if user.target is torch.matmul and user.args[0] is node]
    pixels = [any(axis.kind != Kind.CHANNEL for axis in b.program.type_of(user)[-1]) for user in readers]
    return len(readers) == len(node.users) > 0 and all(pixels)


def _turned(dims: Dims) -> Dims:
    return (*dims[:-2], dims[-1], dims[-2])


def _matrices(view: Dims) -> Dims:
    """``[b, heads, rows, columns]``."""
    lead = tuple((token,) for dim in view[:-2] for token in dim)
    return (*lead, *view[-2:])
