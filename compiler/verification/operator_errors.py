"""Bounds on the error of a general operator's value, from the errors of its inputs (error_bounds.py).

Let x' be an input, x the float program's, and E >= |x - x'|. Then

    function with Lipschitz constant L        L times the largest E among the elements that the result depends on
    sum of products f(a, b), with factors     f(|a'| + E_a, |b'| + E_b) - f(|a'|, |b'|), since f is linear in each
    that are not negative                     input and |a| <= |a'| + E_a
    choice by a condition that is exact       E of the value that is chosen
    choice by a condition that may differ     |x' - y'| + max(E_x, E_y), as either may be x where the other is y
    element at an exact position              E of that element
    k-th largest of some elements             the largest E among them: if all elements change by at most E, at least k
                                              are still >= the k-th largest - E, and fewer than k are > it + E
    element at any position                   largest x' - smallest x' + largest E among those it may be
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import fx

from svitc.ir.operators.broadcasting import broadcast_rule, pointwise_rule
from svitc.ir.operators.products import add_product
from svitc.ir.operators.selection import positions, put_along, take_along
from svitc.ir.operators.several import where
from svitc.ir.operators.structure import pad_number
from svitc.ir.operators.table import Operator

Bound: TypeAlias = torch.Tensor | None  # None for a value that does not differ at all
UNKNOWN = 1e30  # the largest bound
VAST = 1e20  # what is larger may be UNKNOWN times weights, which are never as small as the quotient
Inputs: TypeAlias = list[tuple[torch.Tensor, Bound]]  # values of the quantized program, and bounds on their errors


def operator_error(general: Operator, node: fx.Node, value: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Return a bound on the error of an operator that computes new values.

    Args:
        general: the operator.
        node: the call.
        value: its value in the quantized program.
        inputs: its inputs, at least one of which has an error.
    """
    special = _SPECIAL.get(general.function)
    if special is not None:
        return special(node, inputs).expand(value.shape)
    if general.linear:
        return _of_products(node, inputs)
    if general.lipschitz is None:
        return torch.full_like(value, UNKNOWN)
    errors = [error for _, error in inputs if error is not None]
    if general.rule in (pointwise_rule, broadcast_rule):
        return general.lipschitz * sum(errors[1:], start=errors[0]).expand(value.shape)
    error = errors[0]
    dims: Any = node.kwargs.get("dims", node.kwargs.get("dim"))
    if len(inputs) > 1 or dims is None:  # each element may depend on all others
        return torch.full_like(value, general.lipschitz * sum(float(error.max()) for error in errors))
    largest = error.amax(dims, keepdim=True)
    return general.lipschitz * (largest.expand(value.shape) if value.ndim == error.ndim else largest.view(value.shape))


def or_zeros(value: torch.Tensor, error: Bound) -> torch.Tensor:
    """Return the bound on the error of a value as a tensor."""
    return torch.zeros_like(value) if error is None else error


def _of_products(node: fx.Node, inputs: Inputs) -> torch.Tensor:
    """Return the bound for a sum of products of the inputs, in float64: a small difference of large numbers."""
    function: Any = node.target
    attributes = {key: abs(v) if key in ("alpha", "beta") else v for key, v in node.kwargs.items()}  # type: ignore[arg-type]
    sizes = [value.abs().double() for value, _ in inputs]
    largest = [size + or_zeros(size, error).double() for size, (_, error) in zip(sizes, inputs, strict=True)]
    error = function(*largest, **attributes) - function(*sizes, **attributes)
    return error.clamp(0, UNKNOWN).to(inputs[0][0].dtype)


def _of_choice(_: fx.Node, inputs: Inputs) -> torch.Tensor:
    (condition, doubt), (x, _x), (y, _y) = inputs
    x_error, y_error = or_zeros(x, _x), or_zeros(y, _y)
    if doubt is None:
        return torch.where(condition != 0, x_error, y_error)
    return (x - y).abs() + torch.maximum(x_error, y_error) + torch.zeros_like(condition)


def _of_positions(node: fx.Node, inputs: Inputs) -> torch.Tensor:
    dim: Any = node.kwargs["dim"]
    x, _ = inputs[0]
    return torch.full([1] * x.ndim, float(x.shape[dim] - 1))


def _of_taken(node: fx.Node, inputs: Inputs) -> torch.Tensor:
    dim: Any = node.kwargs["dim"]
    (x, x_error), (index, doubt) = inputs
    error = or_zeros(x, x_error)
    if doubt is None:
        return take_along(error, index, dim)
    order: Any = node.args[1]
    largest = error.amax(dim, keepdim=True)
    if order.target is positions and order.args[0] is node.args[0] and order.kwargs["dim"] == dim:
        return largest
    return x.amax(dim, keepdim=True) - x.amin(dim, keepdim=True) + largest


def _of_put(node: fx.Node, inputs: Inputs) -> torch.Tensor:
    dim: Any = node.kwargs["dim"]
    (x, x_error), (index, doubt), (source, source_error) = inputs
    error, put_error = or_zeros(x, x_error), or_zeros(source, source_error)
    if doubt is None:
        return put_along(error, index, put_error, dim)
    high = torch.maximum(x, source.amax(dim, keepdim=True))
    low = torch.minimum(x, source.amin(dim, keepdim=True))
    return high - low + torch.maximum(error, put_error.amax(dim, keepdim=True))


def _of_padding(node: fx.Node, inputs: Inputs) -> torch.Tensor:
    return pad_number(or_zeros(*inputs[0]), node.kwargs["padding"], 0.0)


_SPECIAL: dict[Callable, Callable[[fx.Node, Inputs], torch.Tensor]] = {
    add_product: _of_products,
    pad_number: _of_padding,
    positions: _of_positions,
    put_along: _of_put,
    take_along: _of_taken,
    where: _of_choice,
}

__all__ = ["UNKNOWN", "VAST", "Bound", "operator_error", "or_zeros"]
