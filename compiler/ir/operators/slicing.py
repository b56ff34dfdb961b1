"""Operators that take parts of a dimension, put parts together, or move its elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from svitc.ir import axes
from svitc.ir.axes import Axis, AxisConflict, Dim, Dims, Kind
from svitc.ir.graph import input_type
from svitc.ir.operators.broadcasting import adopt_kinds
from svitc.ir.operators.table import MAX_ELEMENTS, Operator, are, is_index, is_integer, is_size

ACROSS_BATCH = "it runs across the batch, so that one sample's result would depend on its neighbors"
LETTERS = {Kind.TIME: "t", Kind.PIXEL: "n", Kind.CHANNEL: "c"}


def concatenate(*tensors, dim):
    return torch.cat(tensors, dim)


def slice_range(x, dim, start, stop, step):
    return x[(slice(None),) * dim + (slice(start, stop, step),)]


def select_indices(x, dim, indices):
    return x.index_select(dim, torch.tensor(indices, device=x.device))


def flip(x, dims):
    return x.flip(dims)


def roll(x, shifts, dims):
    return x.roll(shifts, dims)


def changed_dim(node: fx.Node, dims: Sequence[Dim], size: int, reason: str) -> Dim:
    """Return the dimension of a value whose elements are some of, or those of several, other dimensions.

    Args:
        node: the operation.
        dims: the dimensions; their channels are frozen.
        size: number of elements of the new one.
        reason: why its channels cannot be pruned.

    Raises:
        AxisConflict: the batch is among them.
    """
    leaves = [axis for dim in dims for axis in axes.resolve(dim)]
    kinds = {axis.kind for axis in leaves if axis.size > 1} or {axis.kind for axis in leaves} or {Kind.PIXEL}
    if any(axis.kind == Kind.BATCH for axis in leaves):
        raise AxisConflict(ACROSS_BATCH)
    for axis in leaves:
        if axis.kind == Kind.CHANNEL:
            axis.freeze(reason)
    kind = kinds.pop() if len(kinds) == 1 else Kind.PIXEL
    frozen = reason if kind == Kind.CHANNEL else None
    return (Axis(node.name, size, kind, LETTERS[kind], frozen),)


def bounded(dims: Dims) -> Dims:
    """Return a type. Raises AxisConflict if a value of it would be too large for memory."""
    if math.prod(axes.shape(dims)) >= MAX_ELEMENTS:
        raise AxisConflict(f"a value of shape {axes.shape(dims)} is too large")
    return dims


def concatenate_rule(node: fx.Node) -> Dims:
    """Return the type of values put together along a dimension; the other dimensions become identical."""
    parts, dim = [input_type(arg) for arg in node.args], index_of(node, "dim")
    for arg in node.args:
        for other in node.args:
            adopt_kinds(arg, input_type(other))  # type: ignore[arg-type]
    parts = [input_type(arg) for arg in node.args]
    if any(len(part) != len(parts[0]) for part in parts):
        raise AxisConflict("the values that are joined have different numbers of dimensions")
    common = [parts[0][i] for i in range(len(parts[0]))]
    for part in parts[1:]:
        common = [p if i == dim else axes.unify(p, q) for i, (p, q) in enumerate(zip(common, part, strict=True))]
    size = sum(axes.size(part[dim]) for part in parts)
    joined = changed_dim(node, [part[dim] for part in parts], size, "it is joined with other channels")
    if _is_stack_of_steps(parts, dim):
        joined = (Axis(node.name, size, Kind.TIME, "t"),)
    return bounded((*common[:dim], joined, *common[dim + 1 :]))


def _is_stack_of_steps(parts: Sequence[Dims], dim: int) -> bool:
    """Return whether values without time are put together along a new dimension in front of the batch or behind it."""
    kinds = [[axis.kind for axis in d] for d in parts[0]]
    batch = next((i for i, found in enumerate(kinds) if Kind.BATCH in found), None)
    is_beside = dim == 0 if batch is None else dim in (batch - 1, batch + 1)
    timeless = all(axis.kind != Kind.TIME for part in parts for d in part for axis in d)
    return is_beside and timeless and not any(part[dim] for part in parts)


def index_of(node: fx.Node, name: str) -> int:
    """Return an attribute that is the index of a dimension of the first input. Raises AxisConflict if it is none."""
    dim: Any = node.kwargs[name]
    if dim >= len(input_type(node.args[0])):
        raise AxisConflict(f"there is no dimension {dim} in {axes.show(input_type(node.args[0]))}")
    return dim


def _part_rule(node: fx.Node, size: int) -> Dims:
    """Return the type of a value with another number of elements along dimension ``dim``."""
    x, dim = input_type(node.args[0]), index_of(node, "dim")
    return (*x[:dim], changed_dim(node, [x[dim]], size, "a part of its channels is taken"), *x[dim + 1 :])


def slice_rule(node: fx.Node) -> Dims:
    """Return the type of a range of a dimension."""
    start, stop, step = (int(node.kwargs[key]) for key in ("start", "stop", "step"))  # type: ignore[call-overload]
    total = axes.size(input_type(node.args[0])[index_of(node, "dim")])
    if not 0 <= start < stop <= total or step < 1:
        raise AxisConflict(f"{start}:{stop}:{step} is no range of {total} elements")
    return _part_rule(node, len(range(start, stop, step)))


def select_rule(node: fx.Node) -> Dims:
    """Return the type of elements of a dimension, by their indices."""
    indices: Any = node.kwargs["indices"]
    total = axes.size(input_type(node.args[0])[index_of(node, "dim")])
    if not indices or max(indices) >= total:
        raise AxisConflict(f"an index is not below {total}")
    return bounded(_part_rule(node, len(indices)))


def moved_rule(node: fx.Node) -> Dims:
    """Return the type of a value whose elements change their places along some dimensions."""
    x, dims, shifts = list(input_type(node.args[0])), node.kwargs["dims"], node.kwargs.get("shifts")
    if len(set(dims)) != len(dims) or (shifts is not None and len(shifts) != len(dims)):  # type: ignore[arg-type]
        raise AxisConflict(f"the dimensions {dims} do not fit")
    for dim in dims:  # type: ignore[union-attr]
        if dim >= len(x):  # type: ignore[operator]
            raise AxisConflict(f"there is no dimension {dim} in {axes.show(x)}")
        x[dim] = changed_dim(node, [x[dim]], axes.size(x[dim]), "its channels are put into another order")  # type: ignore[index, call-overload]
    return tuple(x)


def _moving(function, rule, what: str, tensors: tuple[int, int | None] = (1, 1), **attributes) -> Operator:
    return Operator(function, rule, what, attributes, tensors, fills=False, moves=True, same_bits=True)


SLICING = (
    _moving(concatenate, concatenate_rule, "cat, stack", (1, None), dim=is_index),
    _moving(slice_range, slice_rule, "x[:, a:b], narrow", dim=is_index, start=is_index, stop=is_index, step=is_size),
    _moving(select_indices, select_rule, "index_select, x[:, [0, 2]]", dim=is_index, indices=are(is_index)),
    _moving(flip, moved_rule, "flip", dims=are(is_index)),
    _moving(roll, moved_rule, "roll", shifts=are(is_integer), dims=are(is_index)),
)
