"""Bounds: the least and the most that each channel of each value can be, for every input, from weights alone.

Only neurons bound anything: the image may hold any number. A spike lies in 0 .. 1 (0 .. D where a neuron counts), and
what is computed from spikes is bounded channel by channel, for all times, images and pixels at once:

    projection    sum over i of max(w, 0) * high + min(w, 0) * low, plus the bias; what is padded may be 0 as well
    batch norm    x * scale + shift, of inference; a negative scale swaps the two ends
    a + b, a * b  the ends added; least and most of the four products of ends
    matmul        for operands that are not negative the product of the ends, else +- that of the largest magnitudes
    pools, means  unchanged; sums as many times as they have terms

Two terms that are never at their ends together are not seen, so that the bounds may be wide, but never too narrow.
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
    """The channel axes of a type, in order; a bound of that type has ``axes.size`` of each dimension's."""
    return [axis for dim in dims for axis in dim if axis.kind == Kind.CHANNEL]


def interval_shape(dims: Dims) -> tuple[int, ...]:
    return tuple(axes.size(channels((dim,))) for dim in dims)


def all_intervals(program: Program) -> dict[fx.Node, Interval]:
    """The bound of every node's value: one element for each combination of its channels, size 1 elsewhere."""
    found: dict[fx.Node, Interval] = {}
    for node in program.graph.nodes:
        shape = interval_shape(program.type_of(node))
        bound = _bound(program, node, [found[n] for n in node.all_input_nodes])
        found[node] = _unknown(shape) if bound is None else bound.fitted(shape)
    return found


def _unknown(shape: tuple[int, ...]) -> Interval:
    most = torch.full(shape, math.inf, dtype=torch.float64)
    return Interval(-most, most, most, 0)


def _bound(program: Program, node: fx.Node, given: list[Interval]) -> Interval | None:
    """None where nothing is known."""
    if node.op == "placeholder":
        return None
    if node.op == "output":
        return given[0]
    if node.op == "get_attr":
        return _attribute(program, node)
    module = program.module_of(node)
    if module is None:
        rule = _FUNCTIONS.get(node.target)
        return rule(program, node, given) if rule is not None else None
    if ops.is_neuron(module):
        return fire(module, given[0], axes.size(program.type_of(node)[0]))
    if ops.is_projection(module):
        return projection(program, node, module, given[0])
    if ops.is_batch_norm(module):
        return None if module.running_mean is None else batch_norm(module, given[0])
    return window(module, given[0])


def _attribute(program: Program, node: fx.Node) -> Interval:
    dims = program.type_of(node)
    value = attribute_of(program.module, str(node.target)).detach().double()
    leaves = [axis for dim in dims for axis in dim]
    value = value.reshape([axis.size for axis in leaves])
    others = [i for i, axis in enumerate(leaves) if axis.kind != Kind.CHANNEL]
    low, high = (value.amin(others), value.amax(others)) if others else (value, value)
    low, high = low.reshape(interval_shape(dims)), high.reshape(interval_shape(dims))
    return Interval(low, high, torch.maximum(low.abs(), high.abs()), 0)


def _view(program: Program, node: fx.Node, given: list[Interval]) -> Interval:
    """The same pattern over channel axes alone; all others have size 1."""
    pattern = str(node.args[1])
    left = pattern.split("->")[0]
    known = {name: size for name, size in node.kwargs.items() if name in left}
    bound = bind_letters(program.type_of(node.all_input_nodes[0]), pattern, known)
    sizes = {name: axes.size(channels((dim,))) for name, dim in bound.items()}
    sizes |= {name: 1 for name in node.kwargs if name not in bound}
    view = einops.repeat if node.target is einops.repeat else einops.rearrange
    return given[0].each(lambda v: view(v, pattern, **sizes))


def _add(program: Program, node: fx.Node, given: list[Interval]) -> Interval | None:
    a, b = _operands(node, given)
    if not isinstance(a, Interval) or not isinstance(b, Interval):
        return None
    if node.target is operator.sub:
        b = Interval(-b.high, -b.low, b.magnitude, b.terms)
    return Interval(a.low + b.low, a.high + b.high, a.magnitude + b.magnitude, max(a.terms, b.terms) + 1)


def _multiply(program: Program, node: fx.Node, given: list[Interval]) -> Interval | None:
    a, b = _operands(node, given)
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


def _operands(node: fx.Node, given: list[Interval]) -> list[Any]:
    of = dict(zip(node.all_input_nodes, given, strict=True))  # x + x has one input
    return [of[a] if isinstance(a, fx.Node) else a for a in node.args]


def _matmul(program: Program, node: fx.Node, given: list[Interval]) -> Interval | None:
    a, b = _operands(node, given)
    dims = program.type_of(node.args[0])  # type: ignore[arg-type]
    count = axes.size(dims[-1]) / a.low.shape[-1]  # pixels that stand behind one element
    magnitude = (a.magnitude @ b.magnitude) * count
    terms = a.terms + b.terms + axes.size(dims[-1])
    if (a.low >= 0).all() and (b.low >= 0).all():
        ends = (a.low @ b.low) * count, (a.high @ b.high) * count
    else:
        most = (torch.maximum(a.low.abs(), a.high.abs()) @ torch.maximum(b.low.abs(), b.high.abs())) * count
        ends = -most, most
    if any(end.isnan().any() for end in (*ends, magnitude)):
        return None
    return Interval(*ends, magnitude, terms)


def _reduction(program: Program, node: fx.Node, given: list[Interval]) -> Interval:
    x, source = given[0], program.type_of(node.all_input_nodes[0])
    gone: Any = node.kwargs["dim"]
    count = math.prod(axes.size(source[i]) for i in gone)
    factor = 1.0 if node.target is torch.mean else count / math.prod(x.low.shape[i] for i in gone)
    keep = bool(node.kwargs["keepdim"])
    reduce: Callable[..., torch.Tensor] = torch.mean if node.target is torch.mean else torch.sum
    return x.each(lambda v: reduce(v, dim=gone, keepdim=keep) * factor, count)


def _block(program: Program, node: fx.Node, given: list[Interval]) -> Interval:
    x = given[0]
    at, index, count = (int(number) for number in node.args[1:])  # type: ignore[arg-type]
    dim: Dim = program.type_of(node.all_input_nodes[0])[at]
    if any(axis.kind != Kind.CHANNEL for axis in dim):
        return x.fitted(tuple(1 if i == at else n for i, n in enumerate(x.low.shape)))
    return x.each(lambda v: ops.take_block(v, at, index, count))


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
