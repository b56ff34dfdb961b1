"""Patches: the windows of a convolution as rows of a matrix, gathered from bytes that lie channels last."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from svitc.analysis.integer_range import IntegerRange
from svitc.ir.axes import Dims, Kind, size
from svitc.onnx.builder import FLOAT
from svitc.onnx.unrolled.builder import I32, Steps, UnrolledBuilder


def kernel_of(weight: np.ndarray) -> np.ndarray:
    """``[out, in, taps...]`` as ``[taps * in, out]``, in the order in which patches lie."""
    return np.moveaxis(weight.reshape(*weight.shape[:2], -1), 0, -1).swapaxes(0, 1).reshape(-1, weight.shape[0])


def patches(b: UnrolledBuilder, x: Steps, t: int, module: Any, grid: IntegerRange) -> ir.Value:
    """All windows of a step's numbers, ``[b * positions, taps * channels]``, by one Gather over whole pixels.

    One more pixel of zeros stands for the border.

    Args:
        grid: of the numbers.
    """
    batch, channels, *pixels = x.timeless
    flat = tuple(token for dim in pixels for token in dim)
    value = b.operand(x, t, (batch, flat, channels), grid)
    dtype: Any = value.type
    nothing = b.nothing(grid)
    sizes = tuple(size(dim) for dim in pixels)
    parts = windows(sizes, module)
    positions, taps = (int(np.prod([part.shape[i] for part in parts])) for i in (0, 1))
    border = any((part >= OUTSIDE).any() for part in parts)
    key = ("patches", value, *(part.tobytes() for part in parts))
    if key not in b.cache:
        if border:
            value = _bordered(b, value, (batch, (), channels), nothing)
            value.shape = ir.Shape([_n(batch), size(flat) + 1, size(channels)])
        index = _index(b, sizes, parts, border)
        found = b.op("Gather", [value, index], (batch, (), channels), {"axis": 1}, helper="patches", dtype=dtype)
        found.shape = ir.Shape([_n(batch), positions * taps, size(channels)])
        shape = b.integers("shape", [-1, taps * size(channels)])
        made = b.op("Reshape", [found, shape], (), helper="patches", dtype=dtype)
        made.shape = ir.Shape([None, taps * size(channels)])
        b.cache[key] = made
    return b.cache[key]


def _bordered(b: UnrolledBuilder, value: ir.Value, dims: Dims, nothing: int) -> ir.Value:
    """Pixels ``[b, pixels, channels]``, and one more of zeros, which are stored as ``nothing``."""
    dtype: Any = value.type
    if b.target.pads_spikes or dtype == FLOAT:
        inputs = [value, b.integers("pads", [0, 0, 0, 0, 1, 0]), *([b.zero_point] if nothing else [])]
        return b.op("Pad", inputs, dims, helper="border", dtype=dtype)
    # some pixel times zero: of the batch's size, which the file does not know, and on the device
    pixel = b.op("Gather", [value, b.integers("first", [0])], dims, {"axis": 1}, helper="border", dtype=dtype)
    zero = b.small("nothing", np.zeros((), b.target.spike.numpy()))
    zeros = b.op("Mul", [pixel, zero], dims, helper="border", dtype=dtype)
    return b.op("Concat", [value, zeros], dims, {"axis": 1}, helper="border", dtype=dtype)


def _n(batch: Any) -> Any:
    return "N" if any(token.kind == Kind.BATCH for token in batch) else size(batch)


OUTSIDE = 1 << 24  # more than any pixel's number


def windows(pixels: tuple[int, ...], module: Any) -> list[np.ndarray]:
    """For each dimension, what every position and tap adds to the number of the pixel that it reads.

    Returns:
        int32 ``[positions, taps]`` for rows and columns; ``OUTSIDE`` where the tap lies on the border.
    """
    found = []
    for i, n in enumerate(pixels):
        k, s, p, d = (each[i] for each in (module.kernel_size, module.stride, module.padding, module.dilation))
        out = (n + 2 * p - d * (k - 1) - 1) // s + 1
        at = np.arange(out)[:, None] * s - p + np.arange(k)[None] * d
        numbers = at * int(np.prod(pixels[i + 1 :]))
        found.append(np.where((at >= 0) & (at < n), numbers, OUTSIDE).astype(np.int32))
    return found


def _index(b: UnrolledBuilder, pixels: tuple[int, ...], parts: list[np.ndarray], border: bool) -> ir.Value:
    """The pixel that each position and tap reads, put together from rows and columns when the file is loaded."""
    key = ("index", pixels, *(part.tobytes() for part in parts))
    if key in b.cache:
        return b.cache[key]

    def constant(op_type: str, *inputs: ir.Value) -> ir.Value:
        made = b.op(op_type, inputs, (), helper="windows", dtype=I32)
        made.shape = None
        return made

    if len(parts) == 2:
        rows, columns = parts[0][:, None, :, None], parts[1][None, :, None, :]
        value = constant("Add", b.initializer("windows.rows", rows), b.initializer("windows.columns", columns))
    else:
        value = b.initializer("windows.rows", parts[0])
    if border:
        value = constant("Min", value, b.initializer("windows.border", np.array(np.prod(pixels), np.int32)))
    b.cache[key] = constant("Reshape", value, b.integers("shape", [-1]))
    return b.cache[key]
