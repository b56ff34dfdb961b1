"""Transfer rules of functions for type inference, by the function that a node calls."""

from __future__ import annotations

import operator

import einops
import torch
from torch import fx

from svitc.ir import axes, ops
from svitc.ir.axes import Axis, AxisConflict, Dim, Dims, Kind
from svitc.ir.einops_pattern import bind_letters, parse_pattern
from svitc.ir.graph import input_type
from svitc.ir.module_rules import ACROSS_BATCH, Rule
from svitc.ir.operators.broadcasting import broadcast
from svitc.ir.operators.registry import OPERATORS
from svitc.ir.operators.table import OperatorRule


def rearrange(node: fx.Node, _: None) -> Dims:
    """Return the type of ``einops.rearrange``, which splits and merges axes but never creates or unifies any."""
    bound = bind_letters(input_type(node.args[0]), str(node.args[1]), node.kwargs)
    return tuple(tuple(a for name in dim for a in bound[name]) for dim in parse_pattern(str(node.args[1]))[1])


def repeat(node: fx.Node, _: None) -> Dims:
    """Return the type of ``einops.repeat``, which adds an axis: time in front, else pixels."""
    pattern = str(node.args[1])
    x = input_type(node.args[0])
    bound = bind_letters(x, pattern, {k: v for k, v in node.kwargs.items() if k in pattern.split("->")[0]})
    out = []
    for position, letters in enumerate(parse_pattern(pattern)[1]):
        dim: list[Axis] = []
        for name in letters:
            if name not in bound:
                kind = Kind.TIME if position == 0 and len(letters) == 1 else Kind.PIXEL
                bound[name] = (Axis(f"{node.name}/{name}", int(node.kwargs[name]), kind, name),)  # type: ignore[arg-type]
            dim += bound[name]
        out.append(tuple(dim))
    return tuple(out)


def elementwise(node: fx.Node, _: None) -> Dims:
    """Return the type of ``x + y``, ``x - y``, ``x * y`` or ``x / y``; dimensions that meet become identical.

    Raises:
        AxisConflict: the dimensions do not fit, or the operation is one of ``operators``.
    """
    left, right = node.args
    if not isinstance(right, fx.Node) or not isinstance(left, fx.Node):
        scaled = left if isinstance(left, fx.Node) else right
        if node.target not in (operator.mul, operator.truediv) or (
            node.target is operator.truediv and left is not scaled
        ):
            raise AxisConflict("a number and a tensor are added by add_number or subtract_from")
        return input_type(scaled)
    if node.target is operator.truediv:
        raise AxisConflict("a tensor is divided by a tensor by divide")
    return broadcast((left, right))


def matmul(node: fx.Node, _: None) -> Dims:
    """Return the type of ``x @ y``, whose inner dimensions become identical."""
    a, b = input_type(node.args[0]), input_type(node.args[1])
    if len(a) != len(b) or len(a) < 2:
        raise AxisConflict(f"a product of {axes.show(a)} and {axes.show(b)} is not supported")
    if any(axis.kind == Kind.BATCH for axis in a[-1]):
        raise AxisConflict(f"it runs {ACROSS_BATCH}")
    _adopt_summed(node.args[0], a, a[-1], b[-2])
    _adopt_summed(node.args[1], b, b[-2], a[-1])
    lead = tuple(axes.unify(p, q) for p, q in zip(a[:-2], b[:-2], strict=True))
    axes.unify(a[-1], b[-2])
    return (*lead, a[-2], b[-1])


def _adopt_summed(parameter: object, own: Dims, summed: Dim, other: Dim) -> None:
    """Let a bare parameter that multiplies steps or pixels, such as a matrix ``[T, T]``, be of these."""
    kinds = {axis.kind for axis in other}
    if isinstance(parameter, fx.Node) and parameter.op == "get_attr" and len(kinds) == 1 and summed:
        for axis in (*own[-2], *own[-1]):
            axis.kind = next(iter(kinds))


def reduction(node: fx.Node, _: None) -> Dims:
    """Return the type of a mean or a sum over dimensions."""
    x = input_type(node.args[0])
    dim, keep = node.kwargs["dim"], node.kwargs["keepdim"]
    reduced = set(dim)  # type: ignore[arg-type]
    if any(axis.kind == Kind.BATCH for i in reduced for axis in x[i]):
        raise AxisConflict(f"it runs {ACROSS_BATCH}")
    if node.target is torch.mean:
        for i in reduced:
            for axis in x[i]:
                if axis.kind == Kind.CHANNEL:
                    axis.freeze("a mean is taken over it, whose divisor would change")
    return tuple(() if i in reduced else d for i, d in enumerate(x) if keep or i not in reduced)


def block(node: fx.Node, _: None) -> Dims:
    """Return the type of ``take_block``, which selects one of several equal blocks of a dimension."""
    source, dim, count = node.args[0], node.args[1], node.args[3]
    x = input_type(source)
    assert isinstance(dim, int) and isinstance(count, int)
    if axes.size(x[dim]) % count:
        raise AxisConflict(f"{axes.size(x[dim])} elements do not make {count} equal blocks")
    stream = list(reversed(x[dim]))
    blocks = axes.take(stream, count, ("s", "c"))
    for axis in axes.resolve(blocks):
        axis.freeze("blocks of a fused projection")
    return (*x[:dim], tuple(reversed(stream)), *x[dim + 1 :])


def part(node: fx.Node, _: None) -> Dims:
    """Return the type of ``take_range``; neither the dimension nor the part of it can be pruned any more."""
    x = input_type(node.args[0])
    dim, start, stop = node.args[1], node.args[2], node.args[3]
    assert isinstance(dim, int) and isinstance(start, int) and isinstance(stop, int)
    for axis in x[dim]:
        axis.freeze("parts of fused layers")
    taken = Axis(node.name, stop - start, Kind.CHANNEL, "c", frozen="a part of fused layers")
    return (*x[:dim], (taken,), *x[dim + 1 :])


def _general(rule: OperatorRule) -> Rule:
    return lambda node, _: rule(node)


FUNCTION_RULES: dict[object, Rule] = {
    **{function: _general(general.rule) for function, general in OPERATORS.items()},
    einops.rearrange: rearrange,
    einops.repeat: repeat,
    **dict.fromkeys(ops.ELEMENTWISE, elementwise),
    torch.matmul: matmul,
    **dict.fromkeys(ops.REDUCTIONS, reduction),
    ops.take_block: block,
    ops.take_range: part,
}
