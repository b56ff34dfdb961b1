"""ONNX forms of the operators over pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import fx

from svitc.ir import axes
from svitc.ir.operators import resampling
from svitc.onnx import layout
from svitc.onnx.builder import Builder, Stored
from svitc.onnx.operators.emitter import Emitter, resized
from svitc.onnx.operators.slicing import Rule, in_program_order, store
from svitc.onnx.operators.structure import cut


def adaptive_pool(op_type: str) -> Rule:
    """Return the rule of a pooling to given sizes; windows of different sizes are taken one by one."""

    def rule(b: Builder, node: fx.Node, _: None) -> Stored:
        sizes: Any = node.kwargs["sizes"]
        source = b.at(node.args[0])
        before = axes.shape(source.view)[2:]
        if any(n % size for n, size in zip(before, sizes, strict=True)):
            view = layout.fresh(b.program.type_of(node))
            return b.store(_uneven(Emitter(b, view), b.read(source, source.view), source.view, sizes, op_type), view)
        window = [n // size for n, size in zip(before, sizes, strict=True)]
        attributes = {"kernel_shape": window, "strides": window}
        return store(b, node, lambda view: b.op(op_type, in_program_order(b, node), view, attributes))

    return rule


def _uneven(e: Emitter, x: ir.Value, dims: axes.Dims, sizes: Sequence[int], op_type: str) -> ir.Value:
    """Emit a pooling with windows of different sizes: along each dimension, the mean or maximum of each window."""
    reduce = {"AveragePool": "ReduceMean", "MaxPool": "ReduceMax"}[op_type]
    for at, size in enumerate(sizes, 2):
        n = axes.size(dims[at])
        if n == size:
            continue
        thin, parts = resized(dims, {at: 1}), []
        for i in range(size):
            window, _ = cut(e, x, dims, at, slice(i * n // size, -(-(i + 1) * n // size), 1))
            parts.append(e(reduce, window, e.integers("axes", at), dims=thin))
        dims = resized(dims, {at: size})
        x = e("Concat", *parts, attributes={"axis": at}, dims=dims)
    return x


def interpolate(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to Resize, which counts coordinates as torch does."""
    source = b.at(node.args[0])
    before, sizes, scales = axes.shape(source.view)[2:], node.kwargs["sizes"], node.kwargs["scales"]
    ratios = scales or [size / n for size, n in zip(sizes, before, strict=True)]  # type: ignore[arg-type]
    mode = str(node.kwargs.get("mode", "bicubic"))
    attributes: dict[str, Any] = {"mode": "cubic" if mode == "bicubic" else "linear"}
    corners = "align_corners" if node.kwargs["align_corners"] else "pytorch_half_pixel"
    if mode == "nearest":
        attributes = {"mode": "nearest", "nearest_mode": "floor"}
        corners = "asymmetric"
    elif mode == "nearest-exact":
        attributes = {"mode": "nearest", "nearest_mode": "round_prefer_ceil"}
        corners = "half_pixel"
    attributes["coordinate_transformation_mode"] = corners
    roi = b.initializer("roi", np.zeros(0, np.float32))
    factors = b.initializer("scales", np.array([1, 1, *ratios], np.float32))  # type: ignore[misc]
    inputs = [b.read(source, source.view), roi, factors]
    return store(b, node, lambda view: b.op("Resize", inputs, view, attributes))  # type: ignore[arg-type]


def fold(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to Col2Im."""
    sizes, kernel, dilation, padding, stride = (
        list(node.kwargs[key])
        for key in ("sizes", "kernel", "dilation", "padding", "stride")  # type: ignore[call-overload]
    )
    inputs = [*in_program_order(b, node), b.integers("image_shape", sizes), b.integers("block_shape", kernel)]
    attributes = {"dilations": dilation, "pads": padding * 2, "strides": stride}
    return store(b, node, lambda view: b.op("Col2Im", inputs, view, attributes))


def pool_3d(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to a pooling over three dimensions."""
    kernel, stride, padding = (list(node.kwargs[key]) for key in ("kernel", "stride", "padding"))  # type: ignore[call-overload]
    attributes = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2}
    if node.kwargs.get("count_include_pad"):
        attributes["count_include_pad"] = 1
    op_type = "MaxPool" if node.target is resampling.max_pool_3d else "AveragePool"
    return store(b, node, lambda view: b.op(op_type, in_program_order(b, node), view, attributes))


def convolution(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to Conv."""
    return _convolution(b, node, "Conv", {})


def transposed_convolution(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to ConvTranspose."""
    return _convolution(b, node, "ConvTranspose", {"output_padding": list(node.kwargs["output_padding"])})  # type: ignore[call-overload]


def _convolution(b: Builder, node: fx.Node, op_type: str, more: dict[str, Any]) -> Stored:
    stride, padding, dilation = (list(node.kwargs[key]) for key in ("stride", "padding", "dilation"))  # type: ignore[call-overload]
    attributes = {
        "strides": stride,
        "pads": padding * 2,
        "dilations": dilation,
        "group": int(node.kwargs["groups"]),  # type: ignore[call-overload]
        **more,
    }
    return store(b, node, lambda view: b.op(op_type, in_program_order(b, node), view, attributes))


def unfold(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to a convolution whose weights pick one pixel of the window each."""
    source = b.at(node.args[0])
    kernel, dilation, padding, stride = (
        list(node.kwargs[key])
        for key in ("kernel", "dilation", "padding", "stride")  # type: ignore[call-overload]
    )
    channels, window = axes.size(source.view[1]), math.prod(kernel)
    weights = np.tile(np.eye(window, dtype=np.float32).reshape(window, 1, *kernel), (channels, 1, 1, 1))
    inputs = [b.read(source, source.view), b.initializer("windows", weights)]
    attributes = {"strides": stride, "pads": padding * 2, "dilations": dilation, "group": channels}
    view = layout.fresh(b.program.type_of(node))
    count = [
        resampling.spans(axes.size(d), k, s, p, e)
        for d, k, s, p, e in zip(source.view[2:], kernel, stride, padding, dilation, strict=True)
    ]
    rows = tuple((axes.Axis("row", n, axes.Kind.PIXEL, "y"),) for n in count)
    picked = b.op("Conv", inputs, (view[0], view[1], *rows), attributes, helper="windows")
    shape = b.integers("shape", [0, 0, -1])
    return b.store(b.op("Reshape", [picked, shape], view), view)


def parametric_relu(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to PRelu, whose slopes are broadcast from the right."""
    x, weight = b.at(node.args[0]), b.at(node.args[1])
    column = weight.view if axes.size(weight.view[0] if weight.view else ()) == 1 else None
    dims = column or (weight.view[0], *((),) * (len(x.view) - 2))
    value = Emitter(b, x.view)("PRelu", b.read(x, x.view), b.read(weight, dims))
    return b.store(value, x.view)


RULES: dict[Callable, Rule] = {
    resampling.adaptive_average_pool: adaptive_pool("AveragePool"),
    resampling.adaptive_max_pool: adaptive_pool("MaxPool"),
    **dict.fromkeys((resampling.interpolate, resampling.interpolate_cubic), interpolate),
    resampling.fold: fold,
    resampling.max_pool_3d: pool_3d,
    resampling.average_pool_3d: pool_3d,
    resampling.convolution: convolution,
    resampling.transposed_convolution: transposed_convolution,
    resampling.unfold: unfold,
    resampling.parametric_relu: parametric_relu,
}
