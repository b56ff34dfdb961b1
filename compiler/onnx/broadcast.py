"""The layout in which two values meet in an addition or a product: the one that takes the least moving."""

from __future__ import annotations

from collections.abc import Sequence

from svitc.ir import axes
from svitc.ir.axes import Dims
from svitc.onnx import layout
from svitc.onnx.builder import Stored

# a layout by (dimension, factor) of the view instead of by token, so that two values can share it
Places = Sequence[Sequence[tuple[int, int]]]
MOVES = {"Reshape": 1, "Transpose": 10}  # a reshape copies nothing
WRITTEN_OUT = 10


def common_layout(left: Stored, right: Stored) -> tuple[Dims, tuple[Dims, Dims], Dims]:
    """How the result of ``left op right`` lies, how each of the two is to be read, and the result's view.

    Candidates are the physical form, the way either of the two lies now, and the program's own dimensions.
    Where one of the two is broadcast over part of a merged dimension, only the last is left.
    """
    rank = max(len(left.view), len(right.view))
    padded = [((),) * (rank - len(s.view)) + s.view for s in (left, right)]
    # a product of two views of one value would hold its tokens twice
    view = layout.fresh(tuple(p or q for p, q in zip(*padded, strict=True)))
    full = [s for s in (left, right) if _whole(s) and axes.shape(s.view) == axes.shape(view)]
    stays = [_places(s.view, s.dims) for s in full]
    best: tuple[int, Places, list[Dims]] | None = None
    for places in (_places(view, layout.physical(view, keep=0)), *stays, _places(view, view)):
        while places and not places[0]:
            places = places[1:]  # the operands come without these too
        wanted = [_read_as(p, view, places) for p in padded]
        found = [dims for dims in wanted if dims is not None]
        if len(found) < 2:
            continue
        cost = sum(_cost(s, dims) for s, dims in zip((left, right), found, strict=True))
        if best is None or cost < best[0]:
            best = (cost, places, found)
    if best is None:  # the two factor a dimension differently: whole dimensions still fit
        return _stripped(view), (_stripped(padded[0]), _stripped(padded[1])), view
    _, places, (a, b) = best
    return tuple(tuple(view[i][j] for i, j in dim) for dim in places), (a, b), view


def _whole(stored: Stored) -> bool:
    return stored.value is not None and not stored.constant_along


def _places(view: Dims, dims: Dims) -> Places:
    at = {token: (i, j) for i, dim in enumerate(view) for j, token in enumerate(dim)}
    return [[at[token] for token in dim] for dim in dims]


def _read_as(padded: Dims, view: Dims, places: Places) -> Dims | None:
    """The layout of an operand that fits ``places``; None where it is broadcast over part of a dimension."""
    if any(p and [a.size for a in p] != [a.size for a in q] for p, q in zip(padded, view, strict=True)):
        return None
    out = []
    for dim in places:
        there = [bool(padded[i]) for i, _ in dim]
        if any(there) and not all(there):
            return None
        out.append(tuple(padded[i][j] for i, j in dim) if all(there) else ())
    return _stripped(tuple(out))


def _stripped(dims: Dims) -> Dims:
    """Without leading dimensions of size 1, which broadcasting adds by itself."""
    while dims and not dims[0]:
        dims = dims[1:]
    return dims


def _cost(stored: Stored, dims: Dims) -> int:
    if stored.value is None:
        return 0  # a parameter is written as it is read
    if stored.constant_along:
        return WRITTEN_OUT
    return sum(MOVES[step.op] for step in layout.steps(stored.dims, dims))
