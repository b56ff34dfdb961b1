"""Whether a product of two activations is computed transposed, ``(a b)' = b' a'``, which may move fewer elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from svitc.ir.axes import Dims, Kind, size
from svitc.ir.program import Program
from svitc.onnx import layout

Side = tuple[Dims, Dims]  # how an operand is stored, and the layout in which the product reads it


def moves_less_transposed(program: Program, node: fx.Node, sides: Sequence[Side], dims: Dims) -> bool:
    """Return whether the transposed product moves fewer elements.

    Args:
        program: the program.
        node: the product.
        sides: its two operands.
        dims: layout of its result.
    """
    (left, left_dims), (right, right_dims) = sides
    other = [(right, transposed(right_dims)), (left, transposed(left_dims))]
    later = size(layout.flat(dims)) if _is_read_transposed(program, node) else 0
    return _moves(other, transposed(dims)) < _moves(sides, dims) + later


def transposed(dims: Dims) -> Dims:
    """Return the layout with rows and columns exchanged."""
    return (*dims[:-2], dims[-1], dims[-2])


def _moves(sides: Sequence[Side], dims: Dims) -> int:
    """Return how many elements must be moved for a product.

    These are the elements of operands whose innermost dimension changes, and of a result that is not channels last.
    """
    total = sum(size(layout.flat(d)) for stored, d in sides if layout.flat(stored)[-len(d[-1]) :] != d[-1])
    return total + (size(layout.flat(dims)) if any(token.kind != Kind.CHANNEL for token in dims[-1]) else 0)


def _is_read_transposed(program: Program, node: fx.Node) -> bool:
    """Return whether all readers of a value are products ``value q`` that will be computed as ``q' value'``.

    They will, since the result of ``value q`` would not have its channels last.
    """
    readers = [user for user in node.users if user.target is torch.matmul and user.args[0] is node]
    pixels = [any(axis.kind != Kind.CHANNEL for axis in program.type_of(user)[-1]) for user in readers]
    return len(readers) == len(node.users) > 0 and all(pixels)


__all__ = ["moves_less_transposed", "transposed"]
