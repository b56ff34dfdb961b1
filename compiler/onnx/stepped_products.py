"""Products of a quantized program: integer matrix products, gathered patches, and float convolutions that are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from torch import fx, nn

from svitc import ops
from svitc.axes import Dims, Kind, size
from svitc.quantized import EXACT

from . import layout
from .builder import FLOAT
from .doubling import factor
from .stepped import I32, U8, SteppedBuilder, Steps, timeless


def dense(b: SteppedBuilder, node: fx.Node, module: Any) -> Steps:
    """A convolution or linear layer of bytes as one integer matrix product a step, ``[rows, in] x [in, out]``."""
    x = b.of(node.args[0])
    view = b.fresh_view(node)
    channel = len(view) - 1 if isinstance(module, nn.Linear) else 1
    dims = _rows(timeless(view), channel)
    path = str(node.target)
    weight, unit = module.weight.numpy(), b.grids[node.all_input_nodes[0]].unit
    if _pointwise(module):
        kernel = weight.reshape(weight.shape[0], -1).T
        read: Any = lambda t: b.read_step(x, t, _rows(x.timeless, channel), U8, unit)  # noqa: E731
    else:
        kernel = np.moveaxis(weight.reshape(*weight.shape[:2], -1), 0, -1).swapaxes(0, 1).reshape(-1, weight.shape[0])
        read = lambda t: _patches(b, x, t, module, unit)  # noqa: E731
    gain = b.gains.get(node, 0)

    def each(t: int) -> ir.Value:
        sums = b.op("MatMulInteger", [read(t), b.small(f"{path}.weight", kernel)], dims, dtype=I32)
        return b.rescaled(path, sums, module, unit, factor(gain, t), dims)

    return Steps(b.each(len(x.values), each), dims, view, gain=gain)


def _rows(view: Dims, channel: int) -> Dims:
    """All but the channels as rows."""
    return (tuple(token for i, dim in enumerate(view) if i != channel for token in dim), view[channel])


def _pointwise(module: Any) -> bool:
    if isinstance(module, nn.Linear):
        return True
    return all(k == 1 for k in module.kernel_size) and set(module.stride) == {1} and not any(module.padding)


def _patches(b: SteppedBuilder, x: Steps, t: int, module: Any, unit: float) -> ir.Value:
    """All windows of a step's bytes, ``[b * positions, taps * channels]``, by one Gather over whole pixels.

    One more pixel of zeros stands for the border.
    """
    batch, channels, *pixels = x.timeless
    flat = tuple(token for dim in pixels for token in dim)
    value = b.read_step(x, t, (batch, flat, channels), U8, unit)
    sizes = tuple(size(dim) for dim in pixels)
    parts = windows(sizes, module)
    positions, taps = (int(np.prod([part.shape[i] for part in parts])) for i in (0, 1))
    border = any((part >= OUTSIDE).any() for part in parts)
    key = ("patches", value, *(part.tobytes() for part in parts))
    if key not in b.cache:
        if border:
            pads = b.integers("pads", [0, 0, 0, 0, 1, 0])
            value = b.op("Pad", [value, pads], (batch, (), channels), helper="border", dtype=U8)
            value.shape = ir.Shape([_n(batch), size(flat) + 1, size(channels)])
        index = _index(b, sizes, parts, border)
        found = b.op("Gather", [value, index], (batch, (), channels), {"axis": 1}, helper="patches", dtype=U8)
        found.shape = ir.Shape([_n(batch), positions * taps, size(channels)])
        shape = b.integers("shape", [-1, taps * size(channels)])
        made = b.op("Reshape", [found, shape], (), helper="patches", dtype=U8)
        made.shape = ir.Shape([None, taps * size(channels)])
        b.cache[key] = made
    return b.cache[key]


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


def _index(b: SteppedBuilder, pixels: tuple[int, ...], parts: list[np.ndarray], border: bool) -> ir.Value:
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


def sliding(b: SteppedBuilder, node: fx.Node, module: Any) -> Steps:
    """A convolution or linear layer in floats, channels first; exact where its input lies on a grid."""
    x = b.of(node.args[0])
    view = b.fresh_view(node)
    dims, path = timeless(view), str(node.target)
    own_gain = b.gains.get(node, 0)
    quantized = ops.is_quantized(module)

    def weights(gain: float, transpose: bool = False) -> list[ir.Value]:
        if not quantized:
            found = [b.weight(f"{path}.weight", module.weight, transpose)]
            return found if module.bias is None else [*found, b.weight(f"{path}.bias", module.bias)]
        whole = module.weight.numpy()
        scale = module.scale.numpy()
        if transpose:
            value = b.widened(f"{path}.weight", np.ascontiguousarray(whole.T), None, 1.0)
            value = b.op("Mul", [value, b.small(f"{path}.scale", scale)], (), helper="constant")
            value.shape = ir.Shape(whole.T.shape)
        else:
            value = b.widened(f"{path}.weight", whole, scale, gain)
        return [value, b.gained(f"{path}.bias", module.bias.numpy(), gain)]

    if isinstance(module, nn.Linear):
        value = weights(1.0, transpose=True)

        def each(t: int) -> ir.Value:
            product = b.op("MatMul", [b.read_step(x, t, x.timeless), value[0]], dims)
            return b.op("Add", [product, value[1]], dims, helper="add_bias") if len(value) > 1 else product

        return Steps(b.each(len(x.values), each), dims, view)
    attributes = {
        "kernel_shape": list(module.kernel_size), "pads": [int(p) for p in module.padding] * 2,
        "strides": list(module.stride), "group": module.groups, "dilations": list(module.dilation),
    }  # fmt: skip

    def convolved(t: int) -> ir.Value:
        return b.op("Conv", [b.read_step(x, t, x.timeless), *weights(factor(own_gain, t))], dims, attributes)

    return Steps(b.each(len(x.values), convolved), dims, view, gain=own_gain)


def matrix_product(b: SteppedBuilder, node: fx.Node) -> Steps:
    """A product of two values; of bytes it is an integer one."""
    sides = [b.of(each) for each in node.args[:2]]
    known = [b.grids.get(each) for each in node.args[:2]]  # type: ignore[arg-type]
    left, right = sides
    view = layout.fresh((*left.view[:-1], right.view[-1]))
    dims = _matrices(timeless(view))
    count = max(len(s.values) for s in sides)
    whole = all(grid is not None and grid.is_byte for grid in known)
    bound = b.grids.get(node)
    units = [grid.unit if grid is not None else 1.0 for grid in known]
    dtype = U8 if whole and bound is not None and bound.bound < EXACT else FLOAT

    def each(t: int) -> ir.Value:
        inputs = [b.read_step(s, t, _matrices(s.timeless), dtype, u) for s, u in zip(sides, units, strict=True)]
        if dtype == U8:
            return b.op("MatMulInteger", inputs, dims, dtype=I32)
        return b.op("MatMul", inputs, dims)

    values = b.each(count, each)
    return Steps(values, dims, view, I32, units[0] * units[1]) if dtype == U8 else Steps(values, dims, view)


def _matrices(view: Dims) -> Dims:
    """``[b, heads, rows, columns]``; what has no size is left out."""
    lead = tuple(token for dim in view[:-2] for token in dim)
    return (lead, *view[-2:])
