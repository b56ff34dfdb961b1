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
from svitc.ir.operators.broadcasting import adopt_kinds
from svitc.ir.operators.slicing import ACROSS_BATCH
from svitc.ir.operators.table import Operator

EQUATION = re.compile(r"[A-Za-z]+(,[A-Za-z]+)*->[A-Za-z]*")


def einsum(*tensors, equation):
    return torch.einsum(equation, *tensors)


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
    for letters, arg in zip(operands, node.args, strict=True):
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
)
