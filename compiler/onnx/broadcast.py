"""The layout in which two values meet in an elementwise operation: the one that moves the fewest elements."""

from __future__ import annotations

from collections.abc import Sequence

from svitc.ir import axes
from svitc.ir.axes import Dims
from svitc.onnx import layout
from svitc.onnx.builder import Stored

# A layout in which (dimension, factor) of the view replaces each token, so that two values can share it.
Places = Sequence[Sequence[tuple[int, int]]]
# relative costs: a Reshape copies nothing, a Transpose and a repetition copy all elements
COSTS = {"Reshape": 1, "Transpose": 10}
REPEAT_COST = 10


def common_layout(left: Stored, right: Stored) -> tuple[Dims, tuple[Dims, Dims], Dims]:
    """Choose the layout in which ``left op right`` is computed.

    The candidates are the physical layout, the present layout of either operand, and the program's dimensions. Where an
    operand is broadcast over part of a merged dimension, only the program's dimensions remain.

    Returns:
        the layout of the result, the layouts in which the two operands are read, and the result's view.
    """
    rank = max(len(left.view), len(right.view))
    padded = [((),) * (rank - len(s.view)) + s.view for s in (left, right)]
    # a product of two views of one value would hold its tokens twice
    view = layout.fresh(tuple(p or q for p, q in zip(*padded, strict=True)))
    full = [s for s in (left, right) if _is_stored(s) and axes.shape(s.view) == axes.shape(view)]
    present = [_places(s.view, s.dims) for s in full]
    best: tuple[int, Places, list[Dims]] | None = None
    for places in (_places(view, layout.physical(view, keep=0)), *present, _places(view, view)):
        while places and not places[0]:
            places = places[1:]  # as in the operands' layouts
        operands = [dims for dims in (_operand_dims(p, view, places) for p in padded) if dims is not None]
        if len(operands) < 2:
            continue
        cost = sum(_cost(s, dims) for s, dims in zip((left, right), operands, strict=True))
        if best is None or cost < best[0]:
            best = (cost, places, operands)
    if best is None:  # the two factor a dimension differently, but the program's dimensions always match
        return _stripped(view), (_stripped(padded[0]), _stripped(padded[1])), view
    _, places, (a, b) = best
    return tuple(tuple(view[i][j] for i, j in dim) for dim in places), (a, b), view


def _is_stored(stored: Stored) -> bool:
    """Return whether a value is computed by a node and stored along all of its axes."""
    return stored.value is not None and not stored.constant_along


def _places(view: Dims, dims: Dims) -> Places:
    """Return a layout with each token replaced by its (dimension, factor) in the view."""
    at = {token: (i, j) for i, dim in enumerate(view) for j, token in enumerate(dim)}
    return [[at[token] for token in dim] for dim in dims]


def _operand_dims(padded: Dims, view: Dims, places: Places) -> Dims | None:
    """Return the layout of an operand that fits ``places``.

    None where the operand is broadcast over part of a merged dimension, or factors a dimension differently.
    """
    if any(p and [a.size for a in p] != [a.size for a in q] for p, q in zip(padded, view, strict=True)):
        return None
    out = []
    for dim in places:
        present = [bool(padded[i]) for i, _ in dim]
        if any(present) and not all(present):
            return None
        out.append(tuple(padded[i][j] for i, j in dim) if all(present) else ())
    return _stripped(tuple(out))


def _stripped(dims: Dims) -> Dims:
    """Return the layout without leading dimensions of size 1, which broadcasting adds anyway."""
    while dims and not dims[0]:
        dims = dims[1:]
    return dims


def _cost(stored: Stored, dims: Dims) -> int:
    """Return the relative cost of reading a value in a layout."""
    if stored.value is None:
        return 0  # a parameter is written in the layout in which it is read
    if stored.constant_along:
        return REPEAT_COST
    return sum(COSTS[view.op] for view in layout.view_operations(stored.dims, dims))
