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
from svitc.ir.operators.slicing import bounded, changed_dim
from svitc.ir.operators.table import Operator, are, is_flag, is_index, is_number, is_size, one_of

LETTERS = "zyx"
MAX_SIZE = 1 << 16  # pixels along one side


def adaptive_average_pool(x, sizes):
    pool = getattr(torch.nn.functional, f"adaptive_avg_pool{len(sizes)}d")
    return pool(x, sizes)


def adaptive_max_pool(x, sizes):
    pool = getattr(torch.nn.functional, f"adaptive_max_pool{len(sizes)}d")
    return pool(x, sizes)


def interpolate(x, sizes, scales, mode, align_corners):
    corners = None if mode.startswith("nearest") else align_corners
    return torch.nn.functional.interpolate(x, sizes if scales is None else None, scales, mode, corners)


def convolution(x, weight, *bias, stride, padding, dilation, groups):
    conv = getattr(torch.nn.functional, f"conv{len(stride)}d")
    return conv(x, weight, *(bias or [None]), stride, padding, dilation, groups)


def transposed_convolution(x, weight, *bias, stride, padding, output_padding, groups, dilation):
    conv = getattr(torch.nn.functional, f"conv_transpose{len(stride)}d")
    return conv(x, weight, *(bias or [None]), stride, padding, output_padding, groups, dilation)


def interpolate_cubic(x, sizes, scales, align_corners):
    return torch.nn.functional.interpolate(x, sizes if scales is None else None, scales, "bicubic", align_corners)


def fold(x, sizes, kernel, dilation, padding, stride):
    return torch.nn.functional.fold(x, sizes, kernel, dilation, padding, stride)


def max_pool_3d(x, kernel, stride, padding):
    return torch.nn.functional.max_pool3d(x, kernel, stride, padding)


def average_pool_3d(x, kernel, stride, padding, count_include_pad):
    return torch.nn.functional.avg_pool3d(x, kernel, stride, padding, False, count_include_pad)


def unfold(x, kernel, dilation, padding, stride):
    return torch.nn.functional.unfold(x, kernel, dilation, padding, stride)


def parametric_relu(x, weight):
    return torch.nn.functional.prelu(x, weight)


def pixels(node: fx.Node, dims: Sequence[Dim], sizes: Sequence[int]) -> Dims:
    """Return dimensions of pixels, or time, with new sizes; those whose size stays keep their axes.

    Raises:
        AxisConflict: a size is out of bounds, or the batch is among the dimensions.
    """
    out = []
    for dim, size, letter in zip(dims, sizes, LETTERS[-len(dims) :], strict=True):
        if not 0 < size <= MAX_SIZE:
            raise AxisConflict(f"{axes.size(dim)} pixels would become {size}")
        if size == axes.size(dim) and all(axis.kind in (Kind.PIXEL, Kind.TIME) for axis in dim):
            out.append(dim)
            continue
        (new,) = changed_dim(node, [dim], size, "a window slides over it")  # refuses the batch, and freezes channels
        kind = Kind.TIME if new.kind == Kind.TIME else Kind.PIXEL
        out.append((Axis(f"{node.name}/{letter}", size, kind, "t" if kind == Kind.TIME else letter),))
    return tuple(out)


def sized_rule(node: fx.Node) -> Dims:
    """Return the type of an operation that brings the last dimensions to given sizes."""
    x, sizes = input_type(node.args[0]), node.kwargs["sizes"]
    count = len(sizes)  # type: ignore[arg-type]
    if not 0 < count <= 3 or len(x) != count + 2:
        raise AxisConflict(f"{axes.show(x)} does not have {count} dimensions of pixels")
    return (*x[:2], *pixels(node, x[2:], sizes))  # type: ignore[arg-type]


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
    for dim in input_type(node.args[1])[2:]:  # the windows, of which nothing can be removed
        for axis in dim:
            axis.kind = Kind.PIXEL
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


def folded_rule(node: fx.Node) -> Dims:
    """Return the type of an image that is the sum of windows ``[N, C * window, windows]``."""
    x = input_type(node.args[0])
    sizes, *windows = (list(node.kwargs[key]) for key in ("sizes", "kernel", "dilation", "padding", "stride"))  # type: ignore[arg-type, call-overload]
    if len(x) != 3 or any(len(window) != 2 for window in (sizes, *windows)):
        raise AxisConflict(f"{axes.show(x)} is no batch of windows of images")
    counts = [spans(n, k, s, p, e) for n, k, e, p, s in zip(sizes, *windows, strict=True)]
    window = math.prod(windows[0])
    if min(counts) < 1 or math.prod(counts) != axes.size(x[2]) or axes.size(x[1]) % window:
        raise AxisConflict(f"{axes.show(x)} are not the windows of an image of {sizes} pixels")
    changed_dim(node, [x[2]], 1, "windows are summed up")  # refuses the batch, and freezes channels
    stream = list(reversed(x[1]))
    channels = axes.take(stream, axes.size(x[1]) // window)
    for axis in stream:
        if axis.kind == Kind.CHANNEL:
            axis.freeze("windows are summed up")
    rows = (Axis(f"{node.name}/{letter}", n, Kind.PIXEL, letter) for letter, n in zip("yx", sizes, strict=True))
    return bounded((x[0], channels, *((row,) for row in rows)))


def pool_3d_rule(node: fx.Node) -> Dims:
    """Return the type of a pooling over the last three dimensions."""
    x = input_type(node.args[0])
    names = ("kernel", "stride", "padding")
    kernel, stride, padding = (list(node.kwargs[key]) for key in names)  # type: ignore[arg-type, call-overload]
    if len(x) != 5 or any(len(window) != 3 for window in (kernel, stride, padding)):
        raise AxisConflict(f"{axes.show(x)} does not have three dimensions of pixels")
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise AxisConflict(f"windows of {kernel} lie in a padding of {padding}")
    counts = [spans(axes.size(d), k, s, p, 1) for d, k, s, p in zip(x[2:], kernel, stride, padding, strict=True)]
    return (*x[:2], *pixels(node, x[2:], counts))


def unfold_rule(node: fx.Node) -> Dims:
    """Return the type of the windows of an image, ``[N, C * window, windows]``."""
    x = input_type(node.args[0])
    names = ("kernel", "dilation", "padding", "stride")
    kernel, dilation, padding, stride = (list(node.kwargs[name]) for name in names)  # type: ignore[arg-type, call-overload]
    if len(x) != 4 or any(len(window) != 2 for window in (kernel, dilation, padding, stride)):
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


_SIZES = {"sizes": are(is_size)}
_UNFOLDING = ("kernel", "dilation", "padding", "stride")
_POOL = {"kernel": are(is_size), "stride": are(is_size), "padding": are(is_index)}
_WINDOW = {"stride": are(is_size), "padding": are(is_index), "dilation": are(is_size), "groups": is_size}
RESAMPLING = (
    Operator(adaptive_average_pool, sized_rule, "adaptive_avg_pool1d to 3d", _SIZES, fills=False, linear=True),
    Operator(
        adaptive_max_pool, sized_rule, "adaptive_max_pool1d to 3d", _SIZES, fills=False, moves=True, same_bits=True
    ),
    Operator(
        interpolate,
        sized_rule,
        "interpolate, nn.Upsample: nearest, nearest-exact, linear, bilinear, trilinear",
        {
            **_SIZES,
            "scales": lambda v: v is None or are(is_number)(v),
            "mode": one_of("nearest", "nearest-exact", "linear", "bilinear", "trilinear"),
            "align_corners": is_flag,
        },
        fills=False,
        linear=True,
    ),
    Operator(
        interpolate_cubic,
        sized_rule,
        "interpolate, nn.Upsample: bicubic",
        {**_SIZES, "scales": lambda v: v is None or are(is_number)(v), "align_corners": is_flag},
        fills=False,
        lipschitz=2.0,
        terms=lambda _: 16,
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
        {key: are(is_size if key != "padding" else is_index) for key in _UNFOLDING},
        fills=False,
        moves=True,
        same_bits=True,
    ),
    Operator(
        fold,
        folded_rule,
        "fold",
        {key: are(is_size if key != "padding" else is_index) for key in ("sizes", *_UNFOLDING)},
        fills=False,
        linear=True,
        terms=lambda node: math.prod(node.kwargs["kernel"]),  # type: ignore[arg-type]
    ),
    Operator(max_pool_3d, pool_3d_rule, "max_pool3d, nn.MaxPool3d", _POOL, fills=False, moves=True, same_bits=True),
    Operator(
        average_pool_3d,
        pool_3d_rule,
        "avg_pool3d, nn.AvgPool3d",
        _POOL | {"count_include_pad": is_flag},
        fills=False,
        linear=True,
        terms=lambda node: math.prod(node.kwargs["kernel"]),  # type: ignore[arg-type]
    ),
    Operator(parametric_relu, prelu_rule, "prelu, nn.PReLU", {}, (2, 2), fills=False, same_bits=True),
)
