"""Products of tensors by Einstein's summation."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import fx

from svitc.ir import axes
from svitc.ir.axes import AxisConflict, Dim, Dims, Kind
from svitc.ir.graph import input_type
from svitc.ir.operators.broadcasting import adopt_kinds, is_parameter
from svitc.ir.operators.slicing import ACROSS_BATCH
from svitc.ir.operators.table import Operator, is_flag, is_number

EQUATION = re.compile(r"[A-Za-z]+(,[A-Za-z]+)*->[A-Za-z]*")


def einsum(*tensors, equation):
    return torch.einsum(equation, *tensors)


def add_product(x, y, z, beta, alpha):
    return (torch.addmm if y.ndim == 2 else torch.baddbmm)(x, y, z, beta=beta, alpha=alpha)


def attention(query, key, value, *mask, causal, scale):
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, *mask, is_causal=causal, scale=scale)


def add_product_rule(node: fx.Node) -> Dims:
    """Return the type of a product of matrices that is added to a value; the value may be repeated along it."""
    added, left, right = node.args
    y, z = input_type(left), input_type(right)
    if len(y) != len(z) or len(y) not in (2, 3):
        raise AxisConflict(f"a product of {axes.show(y)} and {axes.show(z)} is not supported")
    adopt_kinds(left, (*z[:-2], (), z[-2]))  # type: ignore[arg-type]
    adopt_kinds(right, (*y[:-2], y[-1], ()))  # type: ignore[arg-type]
    rows_of(left, y)
    if any(axis.kind == Kind.BATCH for axis in y[-1]):
        raise AxisConflict(ACROSS_BATCH)
    lead = tuple(axes.unify(p, q) for p, q in zip(y[:-2], z[:-2], strict=True))
    axes.unify(y[-1], z[-2])
    product = tuple(axes.resolve(dim) for dim in (*lead, y[-2], z[-1]))
    adopt_kinds(added, product)  # type: ignore[arg-type]
    _broadcast(input_type(added), product)
    return tuple(axes.resolve(dim) for dim in product)


def rows_of(matrix: object, dims: Dims) -> None:
    """Let the rows of a matrix of parameters be of the kind of what it sums up, such as time; not of channels.

    Args:
        matrix: the node.
        dims: its type.
    """
    kinds = {axis.kind for axis in dims[-1]}
    if isinstance(matrix, fx.Node) and matrix.op == "get_attr" and len(kinds) == 1 and Kind.CHANNEL not in kinds:
        for axis in dims[-2]:
            axis.kind = dims[-1][0].kind


def attention_rule(node: fx.Node) -> Dims:
    """Return the type of attention: for each query a mean of the values, weighted by the softmax of its products.

    Raises:
        AxisConflict: the dimensions do not fit, or the keys are the batch or channels.
    """
    query, key, value = (input_type(arg) for arg in node.args[:3])
    if len({len(query), len(key), len(value)}) != 1 or len(query) < 3:
        raise AxisConflict(f"attention of {axes.show(query)}, {axes.show(key)} and {axes.show(value)} is not supported")
    for dims in zip(query[:-2], key[:-2], value[:-2], strict=True):
        axes.unify(dims[0], dims[1])
        axes.unify(dims[0], dims[2])
    axes.unify(query[-1], key[-1])
    keys = axes.unify(key[-2], value[-2])
    for axis in (*keys, *query[-1], *query[-2]):
        if axis.kind == Kind.BATCH:
            raise AxisConflict(ACROSS_BATCH)
    for axis in keys:
        if axis.kind == Kind.CHANNEL:
            axis.freeze("a softmax over all of them")
    for bias in node.args[3:]:
        adopt_kinds(bias, (*query[:-1], keys))  # type: ignore[arg-type]
        _broadcast(input_type(bias), (*query[:-1], keys))
    return (*(axes.resolve(dim) for dim in query[:-1]), axes.resolve(value[-1]))


def _broadcast(bias: Dims, scores: Dims) -> None:
    """Make the dimensions of what is added to the products identical to theirs, but for those of size 1."""
    if len(bias) > len(scores):
        raise AxisConflict(f"{axes.show(bias)} cannot be added to {axes.show(scores)}")
    for p, q in zip(reversed(bias), reversed(scores), strict=False):
        if axes.size(p) != 1:
            axes.unify(p, q)
        elif axes.size(q) != 1:
            freeze_channels(p)
            freeze_channels(q)


def freeze_channels(dim: Dim) -> None:
    """Freeze the channels that something is repeated along."""
    for axis in dim:
        if axis.kind == Kind.CHANNEL:
            axis.freeze("an addition broadcasts over it")


def einsum_rule(node: fx.Node) -> Dims:
    """Return the type of a product: dimensions of the same letter become identical.

    Raises:
        AxisConflict: the equation does not fit, or it sums over the batch.
    """
    equation: Any = node.kwargs["equation"]
    left, right = equation.split("->")
    operands = left.split(",")
    if len(operands) != len(node.args) or len(set(right)) != len(right) or not set(right) <= set(left):
        raise AxisConflict(f"the equation {equation!r} does not fit {len(node.args)} tensors")
    bound: dict[str, Dim] = {}
    # values first: the shape of a parameter does not say what its dimensions mean
    pairs = sorted(zip(operands, node.args, strict=True), key=lambda pair: is_parameter(pair[1]))  # type: ignore[union-attr]
    for letters, arg in pairs:
        if len(letters) != len(input_type(arg)) or len(set(letters)) != len(letters):
            raise AxisConflict(f"{letters!r} does not fit {axes.show(input_type(arg))}")
        adopt_kinds(arg, tuple(bound.get(letter, ()) for letter in letters))  # type: ignore[arg-type]
        for letter, dim in zip(letters, input_type(arg), strict=True):
            bound[letter] = axes.unify(bound[letter], dim) if letter in bound else dim
    for letter in set(left) - set(right) - {","}:
        if any(axis.kind == Kind.BATCH for axis in bound[letter]):
            raise AxisConflict(ACROSS_BATCH)
    return tuple(axes.resolve(bound[letter]) for letter in right)


def _summed(node: fx.Node) -> int:
    """Return the number of terms of each sum."""
    left, right = str(node.kwargs["equation"]).split("->")
    sizes: dict[str, int] = {}
    for letters, arg in zip(left.split(","), node.args, strict=True):
        sizes |= dict(zip(letters, axes.shape(input_type(arg)), strict=True))
    return math.prod(size for letter, size in sizes.items() if letter not in right)


PRODUCTS = (
    Operator(
        einsum,
        einsum_rule,
        "einsum",
        {"equation": lambda value: isinstance(value, str) and EQUATION.fullmatch(value) is not None},
        (1, None),
        fills=False,
        linear=True,
        terms=_summed,
    ),
    Operator(
        add_product,
        add_product_rule,
        "addmm, baddbmm",
        {"beta": is_number, "alpha": is_number},
        (3, 3),
        fills=True,
        terms=lambda node: axes.size(input_type(node.args[1])[-1]) + 1,
        addend=0,
    ),
    Operator(
        attention,
        attention_rule,
        "scaled_dot_product_attention",
        {"causal": is_flag, "scale": is_number},
        (3, 4),
        fills=False,
        terms=lambda node: math.prod(axes.size(dim) for dim in input_type(node.args[1])[-2:]),
    ),
)
