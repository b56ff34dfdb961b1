"""ONNX forms of the operators over pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from svitc.errors import UnsupportedError
from svitc.ir import axes
from svitc.ir.operators import resampling
from svitc.onnx import layout
from svitc.onnx.builder import Builder, Stored
from svitc.onnx.operators.emitter import Emitter
from svitc.onnx.operators.slicing import Rule, in_program_order, store


def adaptive_pool(op_type: str) -> Rule:
    """Return the rule of a pooling to given sizes, which must divide those of the input."""

    def rule(b: Builder, node: fx.Node, _: None) -> Stored:
        sizes: Any = node.kwargs["sizes"]
        before = axes.shape(b.at(node.args[0]).view)[2:]
        if any(n % size for n, size in zip(before, sizes, strict=True)):
            raise UnsupportedError(
                f"{b.name}: pooling {before} pixels to {tuple(sizes)} has windows of different sizes, which have no"
                " ONNX operator",
                hint="Choose sizes that divide the number of pixels.",
            )
        window = [n // size for n, size in zip(before, sizes, strict=True)]
        attributes = {"kernel_shape": window, "strides": window}
        return store(b, node, lambda view: b.op(op_type, in_program_order(b, node), view, attributes))

    return rule


def interpolate(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to Resize, which counts coordinates as torch does."""
    source = b.at(node.args[0])
    before, sizes, scales = axes.shape(source.view)[2:], node.kwargs["sizes"], node.kwargs["scales"]
    ratios = scales or [size / n for size, n in zip(sizes, before, strict=True)]  # type: ignore[arg-type]
    nearest = node.kwargs["mode"] == "nearest"
    corners = "align_corners" if node.kwargs["align_corners"] else "pytorch_half_pixel"
    attributes = {
        "mode": "nearest" if nearest else "linear",
        "coordinate_transformation_mode": "asymmetric" if nearest else corners,
        **({"nearest_mode": "floor"} if nearest else {}),
    }
    roi = b.initializer("roi", np.zeros(0, np.float32))
    factors = b.initializer("scales", np.array([1, 1, *ratios], np.float32))  # type: ignore[misc]
    inputs = [b.read(source, source.view), roi, factors]
    return store(b, node, lambda view: b.op("Resize", inputs, view, attributes))  # type: ignore[arg-type]


def pad(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to Pad; a circular one to slices that are joined."""
    source = b.at(node.args[0])
    sizes: Any = node.kwargs["sizes"]
    x, view = b.read(source, source.view), layout.fresh(b.program.type_of(node))
    pairs = list(zip(sizes[::2], sizes[1::2], strict=True))[::-1]
    rest = [0] * (len(view) - len(pairs))
    pads = b.integers("pads", [*rest, *(p for p, _ in pairs), *rest, *(q for _, q in pairs)])
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[node.kwargs["mode"]]  # type: ignore[index]
    if mode == "wrap" and b.target.opset < 19:
        raise UnsupportedError(f"{b.name}: circular padding needs opset 19, which --target {b.target.name} lacks")
    inputs = [x, pads]
    if mode == "constant" and node.kwargs["value"]:
        inputs.append(b.scalar(f"padding.{node.kwargs['value']:g}", float(node.kwargs["value"])))  # type: ignore[arg-type]
    return b.store(b.op("Pad", inputs, view, {"mode": mode}), view)  # type: ignore[dict-item]


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
    resampling.interpolate: interpolate,
    resampling.pad: pad,
    resampling.convolution: convolution,
    resampling.transposed_convolution: transposed_convolution,
    resampling.unfold: unfold,
    resampling.parametric_relu: parametric_relu,
}
