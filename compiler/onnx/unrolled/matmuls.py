"""Matrix products and convolutions of a quantized program: integer matrix products, and float ones that are exact."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn

from svitc.analysis.integer_range import IntegerRange, integer_ranges, runs_in_floats
from svitc.ir import ops
from svitc.ir.axes import Dims
from svitc.ir.program import Program
from svitc.ir.quantized_modules import EXACT, WIDE_BITS
from svitc.onnx import layout
from svitc.onnx.builder import FLOAT
from svitc.onnx.matrix_order import moves_less_transposed, transposed
from svitc.onnx.unrolled.builder import I32, UnrolledBuilder
from svitc.onnx.unrolled.im2col import kernel_of, patches
from svitc.onnx.unrolled.step_gain import StepScale, factor
from svitc.onnx.unrolled.steps import Steps, timeless
from svitc.quantization import planes
from svitc.quantization.pair_bound import largest_pair, pair_limit
from svitc.quantization.weight_grid import stored_bits

Projection = nn.Conv1d | nn.Conv2d | nn.Linear  # the float layers and their quantized subclasses


def dense(b: UnrolledBuilder, node: fx.Node, module: Projection) -> Steps:
    """Lower a convolution or linear layer of bytes to one integer matrix product a step, ``[rows, in] x [in, out]``.

    Where the input's numbers are too large for the target's integer products, it is a float product, whose sums are
    exact as well.
    """
    x = b.of(node.args[0])
    view = b.fresh_view(node)
    channel = len(view) - 1 if isinstance(module, nn.Linear) else 1
    dims = _rows(timeless(view), channel)
    path = str(node.target)
    weight, input_range = module.weight.numpy(), b.grids[node.all_input_nodes[0]]
    zero = [b.zero_point] if b.zero_byte(input_range) else []
    pointwise = _is_pointwise(module)
    kernel = weight.reshape(weight.shape[0], -1).T if pointwise else kernel_of(weight)
    parts = _parts(b, f"{path}.weight", module.get_buffer("weight"), kernel, input_range)
    gain = b.gains.get(node, 0)

    def emit(t: int) -> ir.Value:
        if isinstance(module, nn.Linear) or pointwise:
            rows = b.operand(x, t, _rows(x.timeless, channel), input_range)
        else:
            rows = patches(b, x, t, module, input_range)
        if rows.type == FLOAT:
            sums, unit = b.op("MatMul", [rows, b.widened(f"{path}.weight", kernel, None, 1.0)], dims), 1.0
            return b.rescaled(path, sums, module, unit, StepScale.at(gain, t), dims)
        products = [b.op("MatMulInteger", [rows, _stored(b, part), *zero], dims, dtype=I32) for part in parts]
        unit = input_range.unit
        if parts[0].base == parts[-1].base:
            sums = products[0] if len(products) == 1 else b.op("Add", products, dims, helper="planes", dtype=I32)
            return b.rescaled(path, sums, module, unit, StepScale.at(gain, t), dims)
        # each plane's sum is rescaled by itself, which ONNX Runtime fuses with the product
        high, low = (
            b.rescaled(path, sums, module, unit * part.base, StepScale.at(gain, t), dims, has_bias=part.base == 1)
            for sums, part in zip(products, parts, strict=True)
        )
        return b.op("Add", [high, low], dims, helper="planes")

    return Steps(b.per_step(b.steps_of(x.view) if gain else len(x.values), emit), dims, view, gain=gain)


class Part(NamedTuple):
    """A part of a layer's weights, which has an integer product of its own.

    Attributes:
        name: its name in the file.
        weight: int8 numbers, ``[in, out]``.
        base: what a weight of 1 stands for.
        is_plane: whether it is a plane of 16-bit weights.
    """

    name: str
    weight: np.ndarray
    base: int = 1
    is_plane: bool = False


def _stored(b: UnrolledBuilder, part: Part) -> ir.Value:
    """Return a part's weights: planes as bytes, others in as few bits as possible."""
    return b.small(part.name, part.weight) if part.is_plane else b.packed(part.name, part.weight)


def _parts(
    b: UnrolledBuilder, name: str, weight: torch.Tensor, kernel: np.ndarray, input_range: IntegerRange
) -> list[Part]:
    """Return a product's weights: as they are, as two planes, or where neighbours exceed int16 as two summands.

    They exceed it only where they were trained on a grid of eight bits, since quantization bounds all others
    (``quantization/pair_bound.py``). Halves of int8 numbers are within every bound.

    Args:
        b: builder that the nodes are emitted to.
        name: name of the weights.
        weight: the layer's weights.
        kernel: the same as ``[in, out]``.
        input_range: range of the input's numbers.
    """
    if stored_bits(weight) == WIDE_BITS:
        high, low, base = planes.split(kernel)
        return [Part(f"{name}.high", high, base, True), Part(name, low, is_plane=True)]
    unsigned = b.target.spike == ir.DataType.UINT8  # kernels for int8 inputs add in int32
    if not unsigned or int(largest_pair(weight.int()).max()) <= pair_limit(input_range.largest_byte):
        return [Part(name, kernel)]
    half = kernel // 2
    return [Part(name, half), Part(f"{name}.rest", kernel - half)]


def stored_widths(program: Program) -> set[int]:
    """Return the numbers of bits in which the weights of integer matrix products could be stored."""
    ranges = integer_ranges(program)
    widths = set()
    for node in program.graph.nodes:
        module = program.module_of(node)
        if module is None or not ops.is_quantized(module):
            continue
        if not runs_in_floats(module, ranges.get(node.all_input_nodes[0])):
            widths.add(stored_bits(module.get_buffer("weight")))
    return widths


def _rows(view: Dims, channel: int) -> Dims:
    """Return the layout of a matrix with the channels as columns and everything else as rows."""
    return (tuple(token for i, dim in enumerate(view) if i != channel for token in dim), view[channel])


def _is_pointwise(module: Projection) -> bool:
    """Return whether a layer reads one pixel or token for each that it writes."""
    if isinstance(module, nn.Linear):
        return True
    return all(k == 1 for k in module.kernel_size) and set(module.stride) == {1} and not any(module.padding)


def in_floats(b: UnrolledBuilder, node: fx.Node, module: Projection) -> Steps:
    """Lower a convolution or linear layer to float operations; they are exact if the input has an integer range."""
    if isinstance(module, nn.Linear) or (_is_pointwise(module) and module.groups == 1):
        return _product(b, node, module)
    return _convolution(b, node, module)


def _product(b: UnrolledBuilder, node: fx.Node, module: Projection) -> Steps:
    """Emit ``[rows, in] x [in, out]``; a gain is applied to the rows, so that all steps share the weights."""
    x, view, path = b.of(node.args[0]), b.fresh_view(node), str(node.target)
    gain = b.gains.get(node, 0)
    channel = len(view) - 1 if isinstance(module, nn.Linear) else 1
    source, dims = _rows(x.timeless, channel), _rows(timeless(view), channel)
    if ops.is_quantized(module):
        integers = np.ascontiguousarray(module.weight.numpy().reshape(len(module.weight), -1).T)
        weight = b.widened(f"{path}.weight", integers, module.get_buffer("scale").numpy()[None], 1.0)
    else:
        flat = module.weight.detach().reshape(len(module.weight), -1)
        weight = b.weight(f"{path}.weight", flat, transpose=True)
    bias = None if module.bias is None else module.bias.detach().numpy()

    def emit(t: int) -> ir.Value:
        rows = b.read_step(x, t, source)
        rows = b.times(rows, factor(gain, t), source) if gain else rows
        product = b.op("MatMul", [rows, weight], dims)
        if bias is None:
            return product
        return b.op("Add", [product, b.gained(f"{path}.bias", bias, factor(gain, t))], dims, helper="add_bias")

    return Steps(b.per_step(b.steps_of(x.view) if gain else len(x.values), emit), dims, view, gain=gain)


def _convolution(b: UnrolledBuilder, node: fx.Node, module: nn.Conv1d | nn.Conv2d) -> Steps:
    """Emit a Conv for each step, channels first as the operator requires."""
    x, view, path = b.of(node.args[0]), b.fresh_view(node), str(node.target)
    dims, gain = timeless(view), b.gains.get(node, 0)

    def parameters(scale_factor: float) -> list[ir.Value]:
        if ops.is_quantized(module):
            scale = module.get_buffer("scale").numpy().reshape(-1, *(1,) * (module.weight.ndim - 1))
            value = b.widened(f"{path}.weight", module.weight.numpy(), scale, scale_factor)
            return [value, b.gained(f"{path}.bias", module.get_buffer("bias").numpy(), scale_factor)]
        weight = b.weight(f"{path}.weight", module.weight)
        return [weight] if module.bias is None else [weight, b.weight(f"{path}.bias", module.bias)]

    attributes: dict[str, int | list[int]] = {
        "kernel_shape": list(module.kernel_size),
        "pads": [int(p) for p in module.padding] * 2,
        "strides": list(module.stride),
        "group": module.groups,
        "dilations": list(module.dilation),
    }

    def emit(t: int) -> ir.Value:
        return b.op("Conv", [b.read_step(x, t, x.timeless), *parameters(factor(gain, t))], dims, attributes)

    values = b.per_step(b.steps_of(x.view) if gain else len(x.values), emit)
    return b.channels_last(node, Steps(values, dims, view, gain=gain))


def matrix_product(b: UnrolledBuilder, node: fx.Node) -> Steps:
    """Lower a product of two activations, transposed if that moves fewer elements.

    It is an integer product if both operands are bytes and every sum is exact in float32 as well.
    """
    left, right = (b.of(operand) for operand in node.args[:2])
    ranges = [b.grids.get(operand) for operand in node.args[:2]]  # type: ignore[arg-type]
    view = layout.fresh((*left.view[:-1], right.view[-1]))
    result_range = b.grids.get(node)
    integer = all(b.fits(r) for r in ranges) and result_range is not None and result_range.bound < EXACT
    units = [r.unit if r is not None else 1.0 for r in ranges]
    operands = [(left, _matrices(left.timeless)), (right, _matrices(right.timeless))]
    dims = _matrices(timeless(view))
    if moves_less_transposed(b.program, node, [(s.dims, d) for s, d in operands], dims):
        operands = [(s, transposed(d)) for s, d in reversed(operands)]
        dims, units = transposed(dims), units[::-1]

    def emit(t: int) -> ir.Value:
        kind = b.spike if integer else FLOAT
        inputs = [b.read_step(s, t, d, kind, u) for (s, d), u in zip(operands, units, strict=True)]
        return b.op("MatMulInteger", inputs, dims, dtype=I32) if integer else b.op("MatMul", inputs, dims)

    values = b.per_step(max(len(left.values), len(right.values)), emit)
    return Steps(values, dims, view, I32, units[0] * units[1]) if integer else Steps(values, dims, view)


def _matrices(view: Dims) -> Dims:
    """Return the layout ``[b, heads, rows, columns]`` of a batch of matrices."""
    lead = tuple((token,) for dim in view[:-2] for token in dim)
    return (*lead, *view[-2:])
