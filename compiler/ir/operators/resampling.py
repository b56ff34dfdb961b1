"""Operators over pixels: pooling to a size, interpolation, padding, and convolutions of other kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from svitc.ir import axes
from svitc.ir.axes import Axis, AxisConflict, Dim, Dims, Kind
from svitc.ir.graph import input_type
from svitc.ir.operators.slicing import changed_dim
from svitc.ir.operators.table import Operator, are, is_flag, is_index, is_integer, is_number, one_of

LETTERS = "zyx"
MAX_SIZE = 1 << 16  # pixels along one side


def adaptive_average_pool(x, sizes):
    pool = getattr(torch.nn.functional, f"adaptive_avg_pool{len(sizes)}d")
    return pool(x, sizes)


def adaptive_max_pool(x, sizes):
    pool = getattr(torch.nn.functional, f"adaptive_max_pool{len(sizes)}d")
    return pool(x, sizes)


def interpolate(x, sizes, scales, mode, align_corners):
    return torch.nn.functional.interpolate(
        x, sizes if scales is None else None, scales, mode, None if mode == "nearest" else align_corners
    )


def pad(x, sizes, mode, value):
    return torch.nn.functional.pad(x, sizes, mode, value if mode == "constant" else None)


def convolution(x, weight, *bias, stride, padding, dilation, groups):
    conv = getattr(torch.nn.functional, f"conv{len(stride)}d")
    return conv(x, weight, *(bias or [None]), stride, padding, dilation, groups)


def transposed_convolution(x, weight, *bias, stride, padding, output_padding, groups, dilation):
    conv = getattr(torch.nn.functional, f"conv_transpose{len(stride)}d")
    return conv(x, weight, *(bias or [None]), stride, padding, output_padding, groups, dilation)


def unfold(x, kernel, dilation, padding, stride):
    return torch.nn.functional.unfold(x, kernel, dilation, padding, stride)


def parametric_relu(x, weight):
    return torch.nn.functional.prelu(x, weight)


def pixels(node: fx.Node, dims: Sequence[Dim], sizes: Sequence[int]) -> Dims:
    """Return dimensions of pixels with new sizes; those whose size stays keep their axes.

    Raises:
        AxisConflict: a size is out of bounds, or the batch is among the dimensions.
    """
    out = []
    for dim, size, letter in zip(dims, sizes, LETTERS[-len(dims) :], strict=True):
        if not 0 < size <= MAX_SIZE:
            raise AxisConflict(f"{axes.size(dim)} pixels would become {size}")
        if size == axes.size(dim) and all(axis.kind == Kind.PIXEL for axis in dim):
            out.append(dim)
            continue
        changed_dim(node, [dim], size, "a window slides over it")  # refuses the batch, and freezes channels
        out.append((Axis(f"{node.name}/{letter}", size, Kind.PIXEL, letter),))
    return tuple(out)


def sized_rule(node: fx.Node) -> Dims:
    """Return the type of an operation that brings the last dimensions to given sizes."""
    x, sizes = input_type(node.args[0]), node.kwargs["sizes"]
    count = len(sizes)  # type: ignore[arg-type]
    if not 0 < count <= 3 or len(x) != count + 2:
        raise AxisConflict(f"{axes.show(x)} does not have {count} dimensions of pixels")
    return (*x[:2], *pixels(node, x[2:], sizes))  # type: ignore[arg-type]


def pad_rule(node: fx.Node) -> Dims:
    """Return the type of a padding of the last dimensions, of which the last is named first."""
    x, sizes = input_type(node.args[0]), node.kwargs["sizes"]
    pairs = list(zip(sizes[::2], sizes[1::2], strict=True))[::-1]  # type: ignore[index]
    if len(pairs) > len(x):
        raise AxisConflict(f"{axes.show(x)} has fewer dimensions than are padded")
    out = list(x[: len(x) - len(pairs)])
    for dim, (before, after) in zip(x[len(out) :], pairs, strict=True):
        size = axes.size(dim) + before + after
        if size < 1 or abs(before) + abs(after) > MAX_SIZE:
            raise AxisConflict(f"a padding of {before} and {after} of {axes.size(dim)} elements")
        out.append(changed_dim(node, [dim], size, "it is padded") if before or after else dim)
    return tuple(out)


def spans(n: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return the number of windows that fit into ``n`` padded pixels."""
    return (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def convolution_rule(node: fx.Node) -> Dims:
    """Return the type of a convolution whose weights are an input, ``[out, in / groups, ...]``."""
    x, weight = input_type(node.args[0]), input_type(node.args[1])
    stride, padding, dilation = (list(node.kwargs[key]) for key in ("stride", "padding", "dilation"))  # type: ignore[arg-type, call-overload]
    _check(x, weight, len(stride))
    out = _coupled(node, x[1], weight[1], weight[0])
    kernel = [axes.size(dim) for dim in weight[2:]]
    sizes = [
        spans(axes.size(d), k, s, p, e) for d, k, s, p, e in zip(x[2:], kernel, stride, padding, dilation, strict=True)
    ]
    return (x[0], out, *pixels(node, x[2:], sizes))


def transposed_rule(node: fx.Node) -> Dims:
    """Return the type of a transposed convolution, whose weights are ``[in, out / groups, ...]``."""
    x, weight = input_type(node.args[0]), input_type(node.args[1])
    keys = ("stride", "padding", "output_padding", "dilation")
    stride, padding, extra, dilation = (list(node.kwargs[key]) for key in keys)  # type: ignore[arg-type, call-overload]
    _check(x, weight, len(stride))
    out = _coupled(node, x[1], weight[0], weight[1])
    kernel = [axes.size(dim) for dim in weight[2:]]
    sizes = [
        (axes.size(d) - 1) * s - 2 * p + e * (k - 1) + o + 1
        for d, k, s, p, e, o in zip(x[2:], kernel, stride, padding, dilation, extra, strict=True)
    ]
    return (x[0], out, *pixels(node, x[2:], sizes))


def _check(x: Dims, weight: Dims, windowed: int) -> None:
    if len(x) != windowed + 2 or len(weight) != windowed + 2:
        raise AxisConflict(f"a convolution of {axes.show(x)} by {axes.show(weight)} over {windowed} dimensions")


def _coupled(node: fx.Node, channels: Dim, inputs: Dim, outputs: Dim) -> Dim:
    """Return the channels that a convolution produces, and make those that it reads identical to its weights'."""
    groups: Any = node.kwargs["groups"]
    for axis in (*inputs, *outputs):
        axis.kind = Kind.CHANNEL
    if groups == 1:
        axes.unify(channels, inputs)
    else:
        for axis in (*channels, *inputs, *outputs):
            axis.freeze("a grouped convolution")
        outputs = (Axis(f"{node.name}/out", groups * axes.size(outputs), Kind.CHANNEL, "c", "a grouped convolution"),)
        if node.target is convolution:
            outputs = input_type(node.args[1])[0]
    for bias in node.args[2:]:
        (own,) = input_type(bias)
        axes.unify(outputs, own)
    return outputs


def unfold_rule(node: fx.Node) -> Dims:
    """Return the type of the windows of an image, ``[N, C * window, windows]``."""
    x = input_type(node.args[0])
    names = ("kernel", "dilation", "padding", "stride")
    kernel, dilation, padding, stride = (list(node.kwargs[name]) for name in names)  # type: ignore[arg-type, call-overload]
    if len(x) != 4 or len(kernel) != 2:
        raise AxisConflict(f"{axes.show(x)} is no batch of images")
    counts = [
        spans(axes.size(d), k, s, p, e) for d, k, s, p, e in zip(x[2:], kernel, stride, padding, dilation, strict=True)
    ]
    rows = pixels(node, x[2:], counts)
    window = tuple(Axis(f"{node.name}/k{i}", k, Kind.PIXEL, "k") for i, k in enumerate(kernel))
    return (x[0], (*x[1], *window), tuple(axis for dim in rows for axis in dim))


def prelu_rule(node: fx.Node) -> Dims:
    """Return the type of a leaky ReLU with a slope for each channel, or one for all."""
    x, weight = input_type(node.args[0]), input_type(node.args[1])
    if math.prod(axes.shape(weight)) > 1:
        if len(x) < 2 or len(weight) != 1:
            raise AxisConflict(f"a slope {axes.show(weight)} for {axes.show(x)}")
        for axis in weight[0]:
            axis.kind = Kind.CHANNEL
        axes.unify(x[1], weight[0])
    return x


def _kernel(node: fx.Node) -> int:
    """Return the largest number of terms of a convolution's sums."""
    return math.prod(axes.shape(input_type(node.args[1]))) + 1


_SIZES = {"sizes": are(is_index)}
_WINDOW = {"stride": are(is_index), "padding": are(is_index), "dilation": are(is_index), "groups": is_index}
RESAMPLING = (
    Operator(adaptive_average_pool, sized_rule, "adaptive_avg_pool1d to 3d", _SIZES, fills=False, linear=True),
    Operator(
        adaptive_max_pool, sized_rule, "adaptive_max_pool1d to 3d", _SIZES, fills=False, moves=True, same_bits=True
    ),
    Operator(
        interpolate,
        sized_rule,
        "interpolate, nn.Upsample: nearest, linear, bilinear, trilinear",
        {
            **_SIZES,
            "scales": lambda v: v is None or are(is_number)(v),
            "mode": one_of("nearest", "linear", "bilinear", "trilinear"),
            "align_corners": is_flag,
        },
        fills=False,
        linear=True,
    ),
    Operator(
        pad,
        pad_rule,
        "pad: constant, reflect, replicate, circular",
        {"sizes": are(is_integer), "mode": one_of("constant", "reflect", "replicate", "circular"), "value": is_number},
        fills=True,
        same_bits=True,
        lipschitz=1.0,
    ),
    Operator(convolution, convolution_rule, "conv1d to 3d", _WINDOW, (2, 3), fills=False, linear=True, terms=_kernel),
    Operator(
        transposed_convolution,
        transposed_rule,
        "conv_transpose1d to 3d",
        _WINDOW | {"output_padding": are(is_index)},
        (2, 3),
        fills=False,
        linear=True,
        terms=_kernel,
    ),
    Operator(
        unfold,
        unfold_rule,
        "unfold",
        {key: are(is_index) for key in ("kernel", "dilation", "padding", "stride")},
        fills=False,
        moves=True,
        same_bits=True,
    ),
    Operator(parametric_relu, prelu_rule, "prelu, nn.PReLU", {}, (2, 2), fills=False, same_bits=True),
)
