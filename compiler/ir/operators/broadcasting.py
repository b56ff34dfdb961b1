"""Types of elementwise operations: their inputs are broadcast, and dimensions that meet become identical."""

from __future__ import annotations

from collections.abc import Sequence

import einops
from torch import fx

from svitc.ir import axes
from svitc.ir.axes import AxisConflict, Dims
from svitc.ir.graph import input_type


def broadcast(tensors: Sequence[fx.Node]) -> Dims:
    """Return the type of an elementwise operation of tensors.

    Args:
        tensors: its inputs.

    Raises:
        AxisConflict: the dimensions do not fit.
    """
    out = input_type(tensors[0])
    for number, node in enumerate(tensors[1:]):
        for earlier in tensors[: number + 1]:
            adopt_kinds(earlier, input_type(node))
            adopt_kinds(node, input_type(earlier))
        out = _meet(tuple(axes.resolve(dim) for dim in out), input_type(node))
    return out


def _meet(a: Dims, b: Dims) -> Dims:
    """Return the type of an elementwise operation of two tensors of these types."""
    rank = max(len(a), len(b))
    a, b = ((),) * (rank - len(a)) + a, ((),) * (rank - len(b)) + b
    out = []
    for i, (p, q) in enumerate(zip(a, b, strict=True)):
        if axes.size(p) == 1 or axes.size(q) == 1:
            out.append(p if axes.size(q) == 1 and p else q if axes.size(p) == 1 and q else p)
            continue
        try:
            out.append(axes.unify(p, q))
        except AxisConflict as conflict:
            raise AxisConflict(
                f"dimension {i} of {axes.show(a)} does not fit that of {axes.show(b)}: {conflict}"
            ) from conflict
    return tuple(out)


def adopt_kinds(node: fx.Node, other: Dims) -> None:
    """Set the kinds of a bare parameter's axes to those of the value that it is combined with.

    The shape of a parameter does not say what its dimensions mean.
    """
    if not is_parameter(node):
        return
    for dim, other_dim in zip(reversed(node.meta["dims"]), reversed(other), strict=False):
        leaves, other_leaves = axes.resolve(dim), axes.resolve(other_dim)
        if leaves and other_leaves and len({axis.kind for axis in other_leaves}) == 1:
            for axis in leaves:
                axis.kind = other_leaves[0].kind


def is_parameter(node: fx.Node) -> bool:
    """Return whether a value is a bare parameter, perhaps with its dimensions in another order or grouping."""
    while node.target is einops.rearrange:
        node = node.all_input_nodes[0]
    return node.op == "get_attr"


def pointwise_rule(node: fx.Node) -> Dims:
    """Return the type of an operation of one tensor that changes each element alone."""
    return input_type(node.args[0])


def broadcast_rule(node: fx.Node) -> Dims:
    """Return the type of an elementwise operation of several tensors."""
    for arg in node.args:
        input_type(arg)  # refuses what is no tensor
    return broadcast([arg for arg in node.args if isinstance(arg, fx.Node)])


ELEMENTWISE_RULES = (pointwise_rule, broadcast_rule)  # each element depends on the same element of the inputs alone
