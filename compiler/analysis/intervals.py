"""Intervals: lower and upper bounds of each channel of each value, for every input, from the weights alone.

Only neurons limit anything, since the image may hold any number. A spike lies in 0 .. 1 (0 .. D where a neuron counts),
and what is computed from spikes has bounds for each channel, for all times, images and pixels at once:

    projection    sum over i of max(w, 0) * high + min(w, 0) * low, plus the bias; padding may add 0 to the interval
    batch norm    x * scale + shift, as in inference; a negative scale swaps the two ends
    a + b, a * b  sums of the ends; least and greatest of the four products of the ends
    matmul        product of the ends for nonnegative operands, else +- that of the largest magnitudes
    pools, means  unchanged; sums as many times as they have terms

The bounds ignore that two terms may never reach their ends together: they may be wide, but never too narrow.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import einops
import torch
from torch import fx

from svitc.analysis.interval_layers import batch_norm, projection, times, window
from svitc.analysis.interval_neurons import Interval, fire
from svitc.ir import axes, ops
from svitc.ir.axes import Axis, Dim, Dims, Kind
from svitc.ir.einops_pattern import bind_letters
from svitc.ir.graph import attribute_of
from svitc.ir.program import Program


def channels(dims: Dims) -> list[Axis]:
    """Return the channel axes of a type, in order."""
    return [axis for dim in dims for axis in dim if axis.kind == Kind.CHANNEL]


def interval_shape(dims: Dims) -> tuple[int, ...]:
    """Return the shape of the interval of a type: for each dimension the product of its channel axes."""
    return tuple(axes.size(channels((dim,))) for dim in dims)


def all_intervals(program: Program) -> dict[fx.Node, Interval]:
    """Return the interval of every node's value: one element for each combination of its channels, size 1 elsewhere."""
    intervals: dict[fx.Node, Interval] = {}
    for node in program.graph.nodes:
        shape = interval_shape(program.type_of(node))
        interval = _interval_of(program, node, [intervals[n] for n in node.all_input_nodes])
        intervals[node] = _unknown(shape) if interval is None else interval.fitted(shape)
    return intervals


def _unknown(shape: tuple[int, ...]) -> Interval:
    """Return an interval without bounds."""
    infinity = torch.full(shape, math.inf, dtype=torch.float64)
    return Interval(-infinity, infinity, infinity, 0)


def _interval_of(program: Program, node: fx.Node, inputs: list[Interval]) -> Interval | None:
    """Return the interval of a node from those of its inputs; None where nothing is known."""
    if node.op == "placeholder":
        return None
    if node.op == "output":
        return None
    if node.op == "get_attr":
        return _attribute(program, node)
    module = program.module_of(node)
    if module is None:
        rule = _FUNCTIONS.get(node.target)
        return rule(program, node, inputs) if rule is not None else None
    if ops.is_neuron(module):
        return fire(module, inputs[0], axes.size(program.type_of(node)[0]))
    if ops.is_projection(module):
        return projection(program, node, module, inputs[0])
    if ops.is_batch_norm(module):
        # where axes of pixels lie within the channels, an interval has fewer elements than the norm
        known = module.running_mean is not None and inputs[0].low.shape[1] == module.num_features
        return batch_norm(module, inputs[0]) if known else None
    return window(module, inputs[0])


def _attribute(program: Program, node: fx.Node) -> Interval:
    """Return the interval of a constant tensor."""
    dims = program.type_of(node)
    value = attribute_of(program.module, str(node.target)).detach().double()
    leaves = [axis for dim in dims for axis in dim]
    value = value.reshape([axis.size for axis in leaves])
    others = [i for i, axis in enumerate(leaves) if axis.kind != Kind.CHANNEL]
    low, high = (value.amin(others), value.amax(others)) if others else (value, value)
    low, high = low.reshape(interval_shape(dims)), high.reshape(interval_shape(dims))
    return Interval(low, high, torch.maximum(low.abs(), high.abs()), 0)


def _view(program: Program, node: fx.Node, inputs: list[Interval]) -> Interval:
    """Apply the pattern of a view to the channel axes alone; all others have size 1."""
    pattern = str(node.args[1])
    left = pattern.split("->")[0]
    given_sizes = {name: size for name, size in node.kwargs.items() if name in left}
    letters = bind_letters(program.type_of(node.all_input_nodes[0]), pattern, given_sizes)
    sizes = {name: axes.size(channels((dim,))) for name, dim in letters.items()}
    sizes |= {name: 1 for name in node.kwargs if name not in letters}
    view = einops.repeat if node.target is einops.repeat else einops.rearrange
    return inputs[0].map(lambda v: view(v, pattern, **sizes))


def _add(program: Program, node: fx.Node, inputs: list[Interval]) -> Interval | None:
    a, b = _operands(node, inputs)
    if not isinstance(a, Interval) or not isinstance(b, Interval):
        return None
    if node.target is operator.sub:
        b = Interval(-b.high, -b.low, b.magnitude, b.terms)
    return Interval(a.low + b.low, a.high + b.high, a.magnitude + b.magnitude, max(a.terms, b.terms) + 1)


def _multiply(program: Program, node: fx.Node, inputs: list[Interval]) -> Interval | None:
    a, b = _operands(node, inputs)
    if isinstance(b, Interval) and not isinstance(a, Interval):
        a, b = b, a
    assert isinstance(a, Interval)
    if not isinstance(b, Interval):
        factor = torch.tensor(float(b), dtype=torch.float64)
        factor = 1 / factor if node.target is operator.truediv else factor
        b = Interval(factor, factor, factor.abs(), 0)
    elif node.target is operator.truediv:
        return None
    ends = torch.stack([e for p in (a.low, a.high) for e in torch.broadcast_tensors(times(p, b.low), times(p, b.high))])
    return Interval(ends.amin(0), ends.amax(0), times(a.magnitude, b.magnitude), a.terms + b.terms + 1)


def _operands(node: fx.Node, inputs: list[Interval]) -> list[Interval | float]:
    """Return the interval or number of each argument, in order; ``x + x`` has two arguments and one input."""
    interval_of = dict(zip(node.all_input_nodes, inputs, strict=True))
    return [interval_of[arg] if isinstance(arg, fx.Node) else arg for arg in node.args]  # type: ignore[misc]


def _matmul(program: Program, node: fx.Node, inputs: list[Interval]) -> Interval | None:
    a, b = _operands(node, inputs)
    assert isinstance(a, Interval) and isinstance(b, Interval) and isinstance(node.args[0], fx.Node)
    dims = program.type_of(node.args[0])
    count = axes.size(dims[-1]) / a.low.shape[-1]  # pixels behind one element
    magnitude = (a.magnitude @ b.magnitude) * count
    terms = a.terms + b.terms + axes.size(dims[-1])
    if (a.low >= 0).all() and (b.low >= 0).all():
        ends = (a.low @ b.low) * count, (a.high @ b.high) * count
    else:
        largest = (torch.maximum(a.low.abs(), a.high.abs()) @ torch.maximum(b.low.abs(), b.high.abs())) * count
        ends = -largest, largest
    if any(end.isnan().any() for end in (*ends, magnitude)):
        return None
    return Interval(*ends, magnitude, terms)


def _reduction(program: Program, node: fx.Node, inputs: list[Interval]) -> Interval:
    x, source = inputs[0], program.type_of(node.all_input_nodes[0])
    reduced: Any = node.kwargs["dim"]
    count = math.prod(axes.size(source[i]) for i in reduced)
    factor = 1.0 if node.target is torch.mean else count / math.prod(x.low.shape[i] for i in reduced)
    keep = bool(node.kwargs["keepdim"])
    reduce: Callable[..., torch.Tensor] = torch.mean if node.target is torch.mean else torch.sum
    return x.map(lambda v: reduce(v, dim=reduced, keepdim=keep) * factor, count)


def _block(program: Program, node: fx.Node, inputs: list[Interval]) -> Interval:
    x = inputs[0]
    at, index, count = (int(number) for number in node.args[1:])  # type: ignore[arg-type]
    dim: Dim = program.type_of(node.all_input_nodes[0])[at]
    if any(axis.kind != Kind.CHANNEL for axis in dim):
        return x.fitted(tuple(1 if i == at else n for i, n in enumerate(x.low.shape)))
    return x.map(lambda v: ops.take_block(v, at, index, count))


_FUNCTIONS: dict[Any, Callable[[Program, fx.Node, list[Interval]], Interval | None]] = {
    einops.rearrange: _view,
    einops.repeat: _view,
    operator.add: _add,
    operator.sub: _add,
    operator.mul: _multiply,
    operator.truediv: _multiply,
    torch.matmul: _matmul,
    **dict.fromkeys(ops.REDUCTIONS, _reduction),
    ops.take_block: _block,
}
