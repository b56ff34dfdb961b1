"""im2col: the windows of a convolution as rows of a matrix, gathered from bytes that are stored channels last."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from torch import nn

from svitc.analysis.integer_range import IntegerRange
from svitc.ir.axes import Axis, Dim, Dims, Kind, size
from svitc.onnx.builder import FLOAT
from svitc.onnx.unrolled.builder import I32, UnrolledBuilder
from svitc.onnx.unrolled.steps import Steps


def kernel_of(weight: np.ndarray) -> np.ndarray:
    """Rearrange a weight ``[out, in, taps...]`` to ``[taps * in, out]``, in the order of the patches' columns."""
    return np.moveaxis(weight.reshape(*weight.shape[:2], -1), 0, -1).swapaxes(0, 1).reshape(-1, weight.shape[0])


def patches(b: UnrolledBuilder, x: Steps, t: int, module: nn.Conv1d | nn.Conv2d, input_range: IntegerRange) -> ir.Value:
    """Emit all windows of one step's numbers as a matrix ``[b * positions, taps * channels]``.

    One Gather copies entire pixels; an additional pixel of zeros stands for the border.

    Args:
        b: builder that the nodes are emitted to.
        x: input of the convolution.
        t: time step, from 0.
        module: the convolution.
        input_range: range of the input's numbers.
    """
    batch, channels, *pixels = x.timeless
    flat = tuple(token for dim in pixels for token in dim)
    value = b.operand(x, t, (batch, flat, channels), input_range)
    dtype = _element_type(value)
    zero = b.zero_byte(input_range)
    sizes = tuple(size(dim) for dim in pixels)
    parts = windows(sizes, module)
    positions, taps = (int(np.prod([part.shape[i] for part in parts])) for i in (0, 1))
    border = any((part >= OUTSIDE).any() for part in parts)
    key = ("patches", value, *(part.tobytes() for part in parts))
    if key not in b.cache:
        if border:
            value = _bordered(b, value, (batch, _pixels(size(flat) + 1), channels), zero)
        index = _index(b, sizes, parts, border)
        places, columns = _pixels(positions), (*_pixels(taps), *channels)
        read = (batch, (*places, *_pixels(taps)), channels)
        pixels_read = b.op("Gather", [value, index], read, {"axis": 1}, helper="patches", dtype=dtype)
        shape = b.integers("shape", [-1, size(columns)])
        rows = ((*batch, *places), columns)
        b.cache[key] = b.op("Reshape", [pixels_read, shape], rows, helper="patches", dtype=dtype)
    return b.cache[key]


def _bordered(b: UnrolledBuilder, value: ir.Value, dims: Dims, zero_byte: int) -> ir.Value:
    """Append one pixel of zeros, which are stored as ``zero_byte``, to ``[b, pixels, channels]``."""
    dtype = _element_type(value)
    if b.target.pads_spikes or dtype == FLOAT:
        inputs = [value, b.integers("pads", [0, 0, 0, 0, 1, 0]), *([b.zero_point] if zero_byte else [])]
        return b.op("Pad", inputs, dims, helper="border", dtype=dtype)
    # a pixel times zero has the batch's size, which is dynamic, and is computed on the device
    one = (dims[0], (), dims[2])
    pixel = b.op("Gather", [value, b.integers("first", [0])], one, {"axis": 1}, helper="border", dtype=dtype)
    zero = b.small("nothing", np.zeros((), b.target.spike.numpy()))
    zeros = b.op("Mul", [pixel, zero], one, helper="border", dtype=dtype)
    return b.op("Concat", [value, zeros], dims, {"axis": 1}, helper="border", dtype=dtype)


def _element_type(value: ir.Value) -> ir.TensorType:
    """Return the element type of a value; every emitted value has one."""
    assert isinstance(value.type, ir.TensorType)
    return value.type


def _pixels(count: int) -> Dim:
    """Return a new token for this many pixels, positions or taps."""
    return (Axis("windows", count, Kind.PIXEL, "w"),)


OUTSIDE = 1 << 24  # larger than any pixel's index


def windows(pixels: tuple[int, ...], module: nn.Conv1d | nn.Conv2d) -> list[np.ndarray]:
    """Return what each position and tap contributes to the index of the pixel that it reads, for each dimension.

    Args:
        pixels: size of the input in each dimension.
        module: the convolution.

    Returns:
        int32 ``[positions, taps]`` for rows and for columns; ``OUTSIDE`` where the tap lies on the border. The index of
        a pixel is the sum of the two.
    """
    parts = []
    for i, n in enumerate(pixels):
        kernel, stride, dilation = module.kernel_size[i], module.stride[i], module.dilation[i]
        padding = int(module.padding[i])
        out = (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        at = np.arange(out)[:, None] * stride - padding + np.arange(kernel)[None] * dilation
        indices = at * int(np.prod(pixels[i + 1 :]))
        parts.append(np.where((at >= 0) & (at < n), indices, OUTSIDE).astype(np.int32))
    return parts


def _index(b: UnrolledBuilder, pixels: tuple[int, ...], parts: list[np.ndarray], border: bool) -> ir.Value:
    """Emit the index of the pixel that each position and tap reads, which is computed when the file is loaded."""
    key = ("index", pixels, *(part.tobytes() for part in parts))
    if key in b.cache:
        return b.cache[key]

    def constant(op_type: str, shape: tuple[int, ...], *inputs: ir.Value) -> ir.Value:
        value = b.op(op_type, inputs, (), helper="windows", dtype=I32)
        value.shape = ir.Shape(shape)
        return value

    if len(parts) == 2:
        rows, columns = parts[0][:, None, :, None], parts[1][None, :, None, :]
        shape = np.broadcast_shapes(rows.shape, columns.shape)
        operands = b.initializer("windows.rows", rows), b.initializer("windows.columns", columns)
        value = constant("Add", shape, *operands)
    else:
        shape, value = parts[0].shape, b.initializer("windows.rows", parts[0])
    if border:
        value = constant("Min", shape, value, b.initializer("windows.border", np.array(np.prod(pixels), np.int32)))
    b.cache[key] = constant("Reshape", (int(np.prod(shape)),), value, b.integers("shape", [-1]))
    return b.cache[key]
