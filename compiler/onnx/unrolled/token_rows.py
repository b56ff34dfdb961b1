"""Rules that take some of the tokens of a value, and put tokens together: one step at a time, channels last."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir as ir
from torch import fx

from svitc.errors import InternalError
from svitc.ir.axes import Dim, Dims, Kind
from svitc.onnx import layout
from svitc.onnx.builder import FLOAT
from svitc.onnx.unrolled.builder import UnrolledBuilder
from svitc.onnx.unrolled.steps import Steps, timeless


def select_indices(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    """Lower to one Gather of rows a step, of the numbers as they are stored."""
    dim: Any = node.kwargs["dim"]
    places: Any = node.kwargs["indices"]
    x = b.of(node.args[0])
    if x.dtype == FLOAT and x.unit != 1:
        raise InternalError(f"{b.name}: floats with a unit")
    tokens = b.fresh_view(node)[dim]
    dims, at = _rows(timeless(x.view), dim)
    taken = _replaced(dims, at, tokens)

    def emit(t: int) -> ir.Value:
        inputs = [b.read_step(x, t, dims, x.dtype), b.integers("indices", list(places))]
        return b.op("Gather", inputs, taken, {"axis": at}, dtype=x.dtype)

    values = b.per_step(len(x.values), emit)
    return replace(x, values=values, dims=taken, view=_replaced(x.view, dim, tokens))


def concatenate(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    """Lower to one Concat of rows a step: of bytes where all numbers fit them, otherwise of floats."""
    dim: Any = node.kwargs["dim"]
    parts = [b.of(arg) for arg in node.args]
    gains = {part.gain for part in parts}
    if len(gains) > 1:
        raise InternalError(f"{b.name}: its inputs have different gains")
    grid = b.grids.get(node)
    in_bytes = b.fits(grid) and gains == {0} and not any(part.parameter for part in parts)
    dtype, unit = (b.spike, grid.unit) if grid is not None and in_bytes else (FLOAT, 1.0)
    layouts = [_rows(timeless(part.view), dim) for part in parts]
    at = layouts[0][1]
    steps = max(parts, key=lambda part: len(part.values))
    tokens = b.fresh_view(node)[dim]
    dims = _replaced(_rows(timeless(steps.view), dim)[0], at, tokens)

    def emit(t: int) -> ir.Value:
        pairs = zip(parts, layouts, strict=True)
        return b.op(
            "Concat", [b.read_step(p, t, d, dtype, unit) for p, (d, _) in pairs], dims, {"axis": at}, dtype=dtype
        )

    values = b.per_step(len(steps.values), emit)
    return Steps(values, dims, _replaced(steps.view, dim, tokens), dtype, unit, gains.pop())


def _rows(view: Dims, dim: int) -> tuple[Dims, int]:
    """Return the layout with one dimension of a step's value by itself, between the other rows and the channels.

    Returns:
        the layout, and the index of the dimension in it.
    """
    others = layout.flat((*view[:dim], *view[dim + 1 :]))
    rows, channels = (
        tuple(a for a in others if (a.kind == Kind.CHANNEL) == is_channel) for is_channel in (False, True)
    )
    before = (rows,) if rows else ()
    return (*before, view[dim], *((channels,) if channels else ())), len(before)


def _replaced(dims: Dims, at: int, tokens: Dim) -> Dims:
    return (*dims[:at], tokens, *dims[at + 1 :])


__all__ = ["concatenate", "select_indices"]
