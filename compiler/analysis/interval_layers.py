"""Intervals of layers: the interval of the output of a convolution, a batch norm or a pool; see intervals.py."""

from __future__ import annotations

import math

import torch
from torch import fx, nn

from svitc.analysis.interval_neurons import Interval
from svitc.ir import axes, ops
from svitc.ir.axes import Dims, Kind
from svitc.ir.batch_norm import scale_and_shift
from svitc.ir.program import Program


def times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a product in which 0 times infinity is 0, since infinity stands for an unknown finite number."""
    return torch.where((a == 0) | (b == 0), 0.0, a * b)


def by_taps(module: nn.Module) -> torch.Tensor:
    """Return the weight as ``[outputs, inputs, taps]``; a linear layer has one tap."""
    assert isinstance(module, (*ops.CONVOLUTIONS, nn.Linear))
    weight = module.weight.detach()
    return weight.flatten(2) if weight.ndim > 2 else weight.unsqueeze(-1)


def padded_taps(module: nn.Module, before: Dims, after: Dims) -> torch.Tensor:
    """Return which taps of a window ever lie on padding, ``[taps]``; all False for a linear layer.

    Args:
        module: a convolution or linear layer.
        before: type of its input.
        after: type of its output.
    """
    assert isinstance(module, (*ops.CONVOLUTIONS, nn.Linear))
    hit = torch.zeros((), dtype=torch.bool)
    for i, k in enumerate(module.weight.shape[2:]):
        assert isinstance(module, ops.CONVOLUTIONS)
        stride, padding, dilation = int(module.stride[i]), int(module.padding[i]), int(module.dilation[i])
        first = torch.arange(k) * dilation - padding
        last = first + (axes.size(after[2 + i]) - 1) * stride
        hit = hit.unsqueeze(-1) | (first < 0) | (last >= axes.size(before[2 + i]))
    return hit.reshape(-1)


def over_inputs(dims: Dims, at: int, values: torch.Tensor, upper: bool) -> torch.Tensor:
    """Return one end of an interval for every input of a layer, ``[..., inputs]``.

    For a convolution, which reads dimension 1, pixels are joined: ``[rest, inputs]``. An axis of pixels within the
    dimension repeats the bound of the channel.

    Args:
        dims: type of the layer's input.
        at: the dimension that the layer reads.
        values: that end of the interval.
        upper: whether it is an upper end.
    """
    if at == 1 and values.ndim > 2:
        others = tuple(range(2, values.ndim))
        values = values.amax(others) if upper else values.amin(others)
    dim = dims[at]
    if not dim:
        return values
    sizes = [axis.size if axis.kind == Kind.CHANNEL else 1 for axis in dim]
    values = values.reshape(*values.shape[:-1], *sizes)
    return values.expand(*values.shape[: values.ndim - len(dim)], *(axis.size for axis in dim)).flatten(-len(dim))


def projection(program: Program, node: fx.Node, module: nn.Module, x: Interval) -> Interval:
    """Return the interval of the output of a convolution or linear layer."""
    assert isinstance(module, (*ops.CONVOLUTIONS, nn.Linear))
    source = node.all_input_nodes[0]
    dims, at = program.type_of(source), 1 if isinstance(module, ops.CONVOLUTIONS) else len(x.low.shape) - 1
    groups = module.groups if isinstance(module, ops.CONVOLUTIONS) else 1
    low, high, magnitude = (
        over_inputs(dims, at, values, upper).unflatten(-1, (groups, -1)).movedim(-2, 0)
        for values, upper in ((x.low, False), (x.high, True), (x.magnitude, True))
    )  # [groups, ..., inputs of a group]
    weight = by_taps(module).unflatten(0, (groups, -1))  # [groups, outputs, inputs, taps]
    total_low = total_high = total_magnitude = torch.zeros((), dtype=torch.float64)
    padded = padded_taps(module, dims, program.type_of(node))
    for taps, ends in ((~padded, (low, high)), (padded, (low.clamp(max=0), high.clamp(min=0)))):
        if not taps.any():
            continue
        part = weight if taps.all() else weight[..., taps]
        up, down = (half.sum(-1, dtype=torch.float64) for half in (part.clamp(min=0), part.clamp(max=0)))
        total_low = total_low + _dot(up, ends[0], -math.inf) + _dot(down, ends[1], -math.inf)
        total_high = total_high + _dot(up, ends[1], math.inf) + _dot(down, ends[0], math.inf)
        total_magnitude = total_magnitude + _dot(up - down, magnitude, math.inf)
    total_low, total_high, total_magnitude = (
        v.movedim(0, -2).flatten(-2) for v in (total_low, total_high, total_magnitude)
    )
    if module.bias is not None:
        bias = module.bias.detach().double()
        total_low, total_high, total_magnitude = total_low + bias, total_high + bias, total_magnitude + bias.abs()
    if at == 1:
        total_low, total_high, total_magnitude = (
            v.reshape(*v.shape, *[1] * (x.low.ndim - 2)) for v in (total_low, total_high, total_magnitude)
        )
    return Interval(total_low, total_high, total_magnitude, x.terms + math.prod(module.weight.shape[1:]) + 1)


def _dot(weight: torch.Tensor, values: torch.Tensor, infinity: float) -> torch.Tensor:
    """Return ``weight [g, o, i]`` times ``values [g, ..., i]``: ``[g, ..., o]``.

    An infinite value counts as ``infinity``, and as nothing where its weight is 0.
    """
    shape = values.shape
    values = values.flatten(1, -2) if values.ndim > 2 else values.unsqueeze(1)
    unbounded = values.isinf()
    result = torch.where(unbounded, 0.0, values) @ weight.mT
    if unbounded.any():
        result[unbounded.double() @ (weight != 0).double().mT > 0] = infinity
    return result.reshape(*shape[:-1], -1)


def batch_norm(module: nn.Module, x: Interval) -> Interval:
    """Return the interval of the output of a batch norm in inference."""
    assert isinstance(module, ops.BATCH_NORMS) and module.running_mean is not None
    shape = (-1, *[1] * (x.low.ndim - 2))
    scale, shift = (value.reshape(shape) for value in scale_and_shift(module))
    ends = times(x.low, scale) + shift, times(x.high, scale) + shift
    mean = module.running_mean.double().abs().reshape(shape)
    beta = module.bias.detach().double().abs().reshape(shape) if module.bias is not None else 0.0
    magnitude = times(x.magnitude + mean, scale.abs()) + beta
    return Interval(torch.minimum(*ends), torch.maximum(*ends), magnitude, x.terms + 4)


def window(module: nn.Module, x: Interval) -> Interval | None:
    """Return the interval of the output of a pool or of padding; None where nothing is known.

    Max pooling pads with -inf, which never wins; zeros that pad other layers count.
    """
    if isinstance(module, nn.MaxPool2d):
        return x
    if isinstance(module, ops.PADS):
        return x.with_zero()
    if not isinstance(module, nn.AvgPool2d) or module.divisor_override is not None:
        return None
    kernel = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,) * 2
    x = Interval(x.low, x.high, x.magnitude, x.terms + math.prod(kernel))
    return x if module.padding in (0, (0, 0)) and not module.ceil_mode else x.with_zero()
