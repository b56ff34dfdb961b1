"""Operators that choose elements by their values: the order of a dimension, and elements at computed positions.

A position is a number like all others here. Equal values are in the order of their positions, as in ONNX and in
``torch.sort(stable=True)``; what ``torch.topk`` and an unstable sort do with them is not documented.
"""

from __future__ import annotations

import torch
from torch import fx

from svitc.ir import axes
from svitc.ir.axes import Axis, AxisConflict, Dims, Kind
from svitc.ir.graph import input_type
from svitc.ir.operators.normalization import freeze_all
from svitc.ir.operators.slicing import LETTERS, index_of
from svitc.ir.operators.table import Operator, is_flag, is_index, is_size


def positions(x, dim, count, descending):
    order = torch.sort(x, dim=dim, descending=descending, stable=True).indices
    return order.narrow(dim, 0, count).to(x.dtype)


def take_along(x, index, dim):
    return torch.take_along_dim(x, index.long(), dim)


def put_along(x, index, source, dim):
    shape = [max(n, m) for n, m in zip(index.shape, source.shape, strict=True)]
    return x.scatter(dim, index.long().expand(shape), source.expand(shape))


def positions_bound(x, dim, count, descending):
    return torch.full_like(x.narrow(dim, 0, count), x.shape[dim])


def take_along_bound(x, index, dim):
    return x.amax(dim, keepdim=True).expand([x.shape[i] if i != dim else index.shape[i] for i in range(x.ndim)])


def put_along_bound(x, index, source, dim):
    return torch.maximum(x, source.amax(dim, keepdim=True))


def positions_rule(node: fx.Node) -> Dims:
    """Return the type of the first positions in the order of a dimension."""
    x, dim, count = input_type(node.args[0]), index_of(node, "dim"), node.kwargs["count"]
    freeze_all(x, [dim])
    size = axes.size(x[dim])
    if not isinstance(count, int) or not 0 < count <= size:
        raise AxisConflict(f"{count} positions of {size} elements are not there")
    if count == size:
        return x
    kinds = {axis.kind for axis in x[dim]}
    kind = kinds.pop() if len(kinds) == 1 else Kind.PIXEL
    frozen = "its best elements are chosen" if kind == Kind.CHANNEL else None
    return (*x[:dim], (Axis(node.name, count, kind, LETTERS[kind], frozen),), *x[dim + 1 :])


def take_rule(node: fx.Node) -> Dims:
    """Return the type of elements of one dimension, whose positions may differ along the others."""
    x, index, dim = input_type(node.args[0]), input_type(node.args[1]), index_of(node, "dim")
    freeze_all(x, [dim])
    _meet(index, x, dim)
    return tuple(index[i] if i == dim else d for i, d in enumerate(input_type(node.args[0])))


def put_rule(node: fx.Node) -> Dims:
    """Return the type of a value with other elements at some positions of one dimension."""
    x, index, source = (input_type(arg) for arg in node.args)
    dim = index_of(node, "dim")
    freeze_all(x, [dim])
    freeze_all(source, [dim])
    _meet(index, x, dim)
    _meet(source, x, dim, whole=True)
    axes.unify(index[dim], source[dim])
    return input_type(node.args[0])


def _meet(part: Dims, x: Dims, dim: int, whole: bool = False) -> None:
    """Make all dimensions but one identical to those of a value, except those of size 1.

    Args:
        part: positions, or the elements that are put there.
        x: the value.
        dim: the dimension of the positions.
        whole: whether dimensions of size 1 must be so in both.

    Raises:
        AxisConflict: the dimensions do not fit.
    """
    if len(part) != len(x):
        raise AxisConflict(f"{axes.show(part)} has not the dimensions of {axes.show(x)}")
    for i, (p, q) in enumerate(zip(part, x, strict=True)):
        if i != dim and (whole or axes.size(p) != 1):
            axes.unify(p, q)


SELECTION = (
    Operator(
        positions,
        positions_rule,
        "argsort, sort, topk, argmax, argmin: positions",
        {"dim": is_index, "count": is_size, "descending": is_flag},
        fills=True,
        same_bits=True,
        bound=positions_bound,
    ),
    Operator(
        take_along,
        take_rule,
        "gather, take_along_dim, elements at computed positions",
        {"dim": is_index},
        tensors=(2, 2),
        fills=False,
        same_bits=True,
        bound=take_along_bound,
    ),
    Operator(
        put_along,
        put_rule,
        "scatter",
        {"dim": is_index},
        tensors=(3, 3),
        fills=False,
        same_bits=True,
        bound=put_along_bound,
    ),
)
