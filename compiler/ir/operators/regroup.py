"""Regroup: a reshape, or the meeting of two values, that the axes of a value do not explain.

A reshape of 12 tokens by 10 channels to 8 by 15 mixes the two, and 8 heads of 48 channels do not nest in 3 of 128. Such
a value can still be computed; but what is removed from one side would be missing in the wrong places of the other. So
its dimensions get axes of their own, and none of its channels can be removed.

At steps: a dimension whose elements are the time steps, as a later operation shows, though its axes do not: channels or
positions of a layer that runs over time, or the columns of an image that neurons take one after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from torch import fx

from svitc.ir import axes
from svitc.ir.axes import Axis, AxisConflict, Dim, Dims, Kind
from svitc.ir.graph import describe, input_type
from svitc.ir.operators.table import Operator, are, is_index, is_integer

REASON = "an operation does not follow its axes"
AS_STEPS = "they are taken for time steps"


def regroup(x, sizes):
    return x.reshape(sizes)


def at_steps(x, dim):
    return x.reshape(x.shape)


def at_steps_rule(node: fx.Node) -> Dims:
    """Return the type of a value with a time axis in one dimension.

    Raises:
        AxisConflict: there is no such dimension, or the batch is in it.
    """
    x, place = input_type(node.args[0]), node.kwargs["dim"]
    if not isinstance(place, int) or place >= len(x):
        raise AxisConflict(f"there is no dimension {place} in {axes.show(x)}")
    dim = axes.resolve(x[place])
    if any(axis.kind == Kind.BATCH for axis in dim):
        raise AxisConflict("images would be taken for time steps")
    for axis in dim:
        if axis.kind == Kind.CHANNEL:
            axis.freeze(AS_STEPS)
    return (*x[:place], (Axis(node.name, axes.size(dim), Kind.TIME, "t"),), *x[place + 1 :])


def regroup_rule(node: fx.Node) -> Dims:
    """Return the type of a regrouped value."""
    source = node.meta.get("source")
    reason = f"{REASON} ({PurePath(source).name})" if source else REASON
    return regrouped_type(input_type(node.args[0]), node.kwargs["sizes"], node.name, reason)


def regrouped_type(x: Dims, sizes: Any, name: str = "regroup", reason: str = REASON) -> Dims:
    """Return the type of a value after a reshape: time and batch stay, all else becomes axes that cannot be pruned.

    Args:
        x: type of the value; its channels are frozen.
        sizes: the new sizes; -1 for one of them, which takes what remains.
        name: name of the new axes.
        reason: why the channels cannot be pruned.

    Raises:
        AxisConflict: the sizes do not fit, or the batch would be mixed with something else.
    """
    out: list[Dim] = []
    for leaves, part in _segments(x, _complete(sizes, axes.size(axis for dim in x for axis in dim))):
        held = {axis.kind for axis in leaves}
        if Kind.BATCH in held or held <= {Kind.TIME}:
            out += axes.factor([leaves], part)
            continue
        for axis in leaves:
            if axis.kind == Kind.CHANNEL:
                axis.freeze(reason)
        out += [(Axis(f"{name}/{len(out) + i}", n, Kind.PIXEL, "n"),) for i, n in enumerate(part)]
    return tuple(out)


def why_opaque(node: fx.Node) -> str | None:
    """Return why what a node reads is kept unpruned, if it is one of these operators; else None."""
    if node.target is at_steps:
        place: Any = node.kwargs["dim"]
        readers = " and ".join(sorted({describe(user) for user in node.users}))
        return f"{readers}: takes {axes.show([input_type(node.args[0])[place]])} for time steps"
    if node.target is not regroup:
        return None
    before, after = (_sizes(input_type(x)) for x in (node.args[0], node))
    if before != after:
        return f"a reshape of {before} to {after} mixes axes"
    readers = " and ".join(sorted({describe(user) for user in node.users}))
    return f"{readers}: the axes of its inputs do not fit together"


def _sizes(dims: Dims) -> tuple[int, ...]:
    """Return the sizes of dimensions, with -1 for the one of the batch."""
    return tuple(-1 if any(axis.kind == Kind.BATCH for axis in dim) else axes.size(dim) for dim in dims)


def _complete(sizes: Any, total: int) -> list[int]:
    """Return sizes with -1 replaced by what remains of all elements."""
    known = math.prod(n for n in sizes if n != -1)
    if list(sizes).count(-1) > 1 or known <= 0 or total % known:
        raise AxisConflict(f"{total} elements cannot be regrouped to {tuple(sizes)}")
    complete = [total // known if n == -1 else n for n in sizes]
    if math.prod(complete) != total:
        raise AxisConflict(f"{total} elements cannot be regrouped to {tuple(sizes)}")
    return complete


def _segments(x: Dims, sizes: Sequence[int]) -> list[tuple[Dim, list[int]]]:
    """Split leaf axes and new sizes into the shortest runs that have the same number of elements."""
    stream = [axis for dim in x for axis in axes.resolve(dim)]
    segments: list[tuple[Dim, list[int]]] = []
    leaves: list[Axis] = []
    part: list[int] = []
    rest = list(sizes)
    while stream or rest:
        left, right = axes.size(leaves), math.prod(part)
        if left <= right and stream and (leaves != [] or part == [] or left < right):
            leaves.append(stream.pop(0))
        elif rest:
            part.append(rest.pop(0))
        else:
            leaves.append(stream.pop(0))
        if leaves and part and axes.size(leaves) == math.prod(part):
            segments.append((tuple(leaves), part))
            leaves, part = [], []
    if leaves or part:  # axes or dimensions of size 1 at the end
        last_leaves, last_part = segments.pop() if segments else ((), [])
        segments.append(((*last_leaves, *leaves), [*last_part, *part]))
    return segments


REGROUP = (
    Operator(
        regroup,
        regroup_rule,
        "reshape and view that mix axes",
        {"sizes": are(is_integer)},
        fills=False,
        moves=True,
        same_bits=True,
    ),
    Operator(
        at_steps,
        at_steps_rule,
        "neurons and sums over other steps than those of the input",
        {"dim": is_index},
        fills=False,
        moves=True,
        same_bits=True,
    ),
)
