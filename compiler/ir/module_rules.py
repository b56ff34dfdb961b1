"""Transfer rules of layers for type inference, by the class of their module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import fx, nn

from svitc.ir import axes, ops
from svitc.ir.axes import Axis, AxisConflict, Dim, Dims, Kind
from svitc.ir.graph import input_type

# The second argument is the module that the node calls, or None for functions. Each rule takes the module class that
# it is registered for, which a common signature cannot express.
Rule: TypeAlias = Callable[[fx.Node, Any], Dims]
Windowed: TypeAlias = nn.Conv1d | nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d
ACROSS_BATCH = "across the batch, so that one sample's result would depend on its neighbors"
GROUPED = "a grouped convolution"
# in reports, whose texts stay as they are
WINDOW = "a window slides over it, so that neighbours count"


def window(node: fx.Node, module: Windowed, dim: Dim, i: int, letter: str) -> Dim:
    """Return the dimension after a sliding window; the same axes where the window does not change them.

    Args:
        node: the call of ``module``.
        module: the layer with the window.
        dim: the dimension that the window slides over.
        i: index of the window's dimension: 0 is the height, or the length in one dimension.
        letter: preferred letter of the new axis.

    Raises:
        AxisConflict: the window slides over the batch, or is larger than the input.
    """

    def pick(value: int | tuple[int, ...]) -> int:
        return int(value[i] if isinstance(value, tuple) else value)

    if isinstance(module.padding, str):
        raise AxisConflict(f"padding={module.padding!r} is not supported; give numbers")
    k, p = pick(module.kernel_size), pick(module.padding)
    s = pick(module.stride if module.stride is not None else module.kernel_size)
    d = pick(getattr(module, "dilation", 1))
    n = axes.size(dim)
    span = n + 2 * p - d * (k - 1) - 1
    out = (-(-span // s) if getattr(module, "ceil_mode", False) else span // s) + 1
    if out < 1:
        raise AxisConflict(f"the input is too small: {n} pixels under a window of {k}")
    if out == n and s == k == 1:
        return dim
    kind, frozen = Kind.PIXEL, None
    for axis in dim:
        if axis.kind == Kind.BATCH:
            raise AxisConflict(f"a window slides {ACROSS_BATCH}")
        if axis.kind == Kind.CHANNEL:
            kind, frozen = Kind.CHANNEL, WINDOW
            axis.keep_intact(WINDOW)
    if out == n and s == 1:
        return dim
    return (Axis(f"{node.name}/{letter}", out, kind, letter, frozen),)


def convolution(node: fx.Node, module: nn.Conv1d | nn.Conv2d) -> Dims:
    """Return the type of a convolution, with a new channel axis unless depthwise; of time where it mixes steps."""
    x = input_type(node.args[0])
    spatial = module.weight.ndim - 2
    if len(x) != spatial + 2:
        raise AxisConflict(f"expects {spatial + 2} dimensions, got {len(x)}")
    if axes.size(x[1]) != module.in_channels:
        raise AxisConflict(f"expects {module.in_channels} input channels, got {axes.size(x[1])}")
    depthwise = module.groups == module.in_channels == module.out_channels and module.groups > 1
    over_time = {axis.kind for axis in x[1]} == {Kind.TIME}
    kind, letter = (Kind.TIME, "t") if over_time else (Kind.CHANNEL, "c")
    out: Dim
    per_group: Dim = x[1]
    if depthwise:
        out, per_group = x[1], ()
    elif module.groups > 1:
        out, per_group = grouped_channels(node, module, x[1])
    else:
        out = (Axis(str(node.target), module.out_channels, kind, letter),)
    sizes = module.weight.shape[2:]
    kernel = tuple((Axis(f"{node.target}/k{i}", k, Kind.PIXEL, "k"),) for i, k in enumerate(sizes))
    node.meta["params"] = {"weight": (out, per_group, *kernel)} | _per_channel_parameters(module, out)
    pixels = tuple(window(node, module, dim, i, "yx"[i]) for i, dim in enumerate(x[2:]))
    return (x[0], out, *pixels)


def grouped_channels(node: fx.Node, module: nn.Conv1d | nn.Conv2d, channels: Dim) -> tuple[Dim, Dim]:
    """Return the output channels of a grouped convolution, and the input channels of one group.

    The groups are an axis of their own, like heads: all of them stay, and keep the same channels.

    Args:
        node: the call of ``module``.
        module: the convolution.
        channels: its input channels.
    """
    kind, letter = channels[-1].kind, channels[-1].letter
    stream = list(reversed(axes.resolve(channels)))
    try:
        groups = axes.take(stream, module.groups, ("g", "c"))
    except AxisConflict:  # the channels are grouped in another way already
        for axis in channels:
            axis.freeze(GROUPED)
        out = (Axis(str(node.target), module.out_channels, kind, letter, frozen=GROUPED),)
        return out, (Axis(f"{node.target}/in", module.weight.shape[1], kind, letter, frozen=GROUPED),)
    for axis in groups:
        axis.freeze(GROUPED)
    inner = Axis(str(node.target), module.out_channels // module.groups, kind, letter)
    return (*groups, inner), tuple(reversed(stream))


def linear(node: fx.Node, module: nn.Linear) -> Dims:
    """Return the type of a linear layer, with a new channel axis; of time where it mixes time steps alone."""
    x = input_type(node.args[0])
    if axes.size(x[-1]) != module.in_features:
        raise AxisConflict(f"expects {module.in_features} features, got {axes.size(x[-1])}")
    out = (Axis(str(node.target), module.out_features, Kind.CHANNEL, "c"),)
    if {axis.kind for axis in x[-1]} == {Kind.TIME}:
        out = (Axis(str(node.target), module.out_features, Kind.TIME, "t"),)
    node.meta["params"] = {"weight": (out, x[-1])} | _per_channel_parameters(module, out)
    return (*x[:-1], out)


def _per_channel_parameters(module: nn.Module, out: Dim) -> dict[str, Dims]:
    """Return the types of a projection's bias, and of its scale if it is quantized."""
    return {name: (out,) for name in ("bias", "scale") if getattr(module, name, None) is not None}


def batch_norm(node: fx.Node, module: nn.BatchNorm1d | nn.BatchNorm2d) -> Dims:
    """Return the type of a batch norm, which is that of its input."""
    x = input_type(node.args[0])
    if len(x) < 2 or axes.size(x[1]) != module.num_features:
        raise AxisConflict(f"expects {module.num_features} channels in dimension 1 of {axes.show(x)}")
    names = ("weight", "bias", "running_mean", "running_var")
    node.meta["params"] = {name: (x[1],) for name in names if getattr(module, name) is not None}
    return x


def pool(node: fx.Node, module: nn.MaxPool2d | nn.AvgPool2d) -> Dims:
    """Return the type of a pooling layer, with new pixel axes where the size changes."""
    x = input_type(node.args[0])
    if len(x) != 4:
        raise AxisConflict(f"expects 4 dimensions, got {len(x)}")
    return (*x[:2], *(window(node, module, dim, i, "yx"[i]) for i, dim in enumerate(x[2:])))


def zero_pad(node: fx.Node, module: nn.ZeroPad2d) -> Dims:
    """Return the type of zero padding, with new pixel axes where zeros are added."""
    x = input_type(node.args[0])
    left, right, top, bottom = module.padding
    if len(x) < 3 or min(module.padding) < 0:
        raise AxisConflict(f"padding of {axes.show(x)} by {module.padding} is not supported")
    out = []
    for dim, zeros, letter in zip(x[-2:], (top + bottom, left + right), "yx", strict=True):
        if zeros and any(axis.kind != Kind.PIXEL for axis in dim):
            raise AxisConflict(f"zeros are added to {axes.show([dim])}, which is not a dimension of pixels")
        padded = Axis(f"{node.name}/{letter}", axes.size(dim) + zeros, Kind.PIXEL, letter)
        out.append((padded,) if zeros else dim)
    return (*x[:-2], *out)


def stateless_neuron(node: fx.Node, _: nn.Module) -> Dims:
    """Return the type of a neuron without membrane, which is that of its input."""
    return input_type(node.args[0])


def spiking_neuron(node: fx.Node, _: nn.Module) -> Dims:
    """Return the type of a neuron with a membrane, which is that of its input.

    Raises:
        AxisConflict: the first dimension is not time alone.
    """
    x = input_type(node.args[0])
    if not x or not x[0] or any(axis.kind != Kind.TIME for axis in x[0]):
        raise AxisConflict(
            "the neuron's first dimension is not time alone"
            f" ({axes.show(x)}), so that it would run over other samples as if they were later steps",
            hint="Put time first in front of the neuron, as in x.transpose(0, 1).",
        )
    return x


MODULE_RULES: dict[type, Rule] = {
    **dict.fromkeys(ops.CONVOLUTIONS, convolution),
    nn.Linear: linear,
    **dict.fromkeys(ops.BATCH_NORMS, batch_norm),
    **dict.fromkeys(ops.POOLS, pool),
    **dict.fromkeys(ops.PADS, zero_pad),
    **dict.fromkeys(ops.STATEFUL_NEURONS, spiking_neuron),
    **dict.fromkeys(ops.STATELESS_NEURONS, stateless_neuron),
    **dict.fromkeys((ops.FixedPoint, ops.RunningReduction), stateless_neuron),
}
