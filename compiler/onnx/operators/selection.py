"""ONNX forms of the operators that choose elements by their values."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from torch import fx

from svitc.ir import axes
from svitc.ir.axes import Dims
from svitc.ir.operators import selection
from svitc.onnx import layout
from svitc.onnx.builder import FLOAT, Builder, Stored
from svitc.onnx.operators.slicing import Rule, in_program_order, store

INTEGER = ir.TensorType(ir.DataType.INT64)


def positions(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to TopK, which orders equal values by their positions."""
    view = layout.fresh(b.program.type_of(node))
    count = b.integers("count", [int(node.kwargs["count"])])  # type: ignore[call-overload]
    attributes = {"axis": int(node.kwargs["dim"]), "largest": int(bool(node.kwargs["descending"])), "sorted": 1}  # type: ignore[call-overload]
    _, places = b.ops("TopK", [*in_program_order(b, node), count], [view, view], attributes)
    places.type = INTEGER
    return b.store(b.op("Cast", [places], view, {"to": FLOAT.dtype.value}, helper="cast"), view)


def whole_numbers(b: Builder, index: Stored, view: Dims) -> ir.Value:
    """Emit positions as integers, repeated along the dimensions in which they have size 1.

    Args:
        b: builder that the nodes are emitted to.
        index: the positions.
        view: the dimensions that they shall have.
    """
    places = b.op(
        "Cast", [b.read(index, index.view)], index.view, {"to": INTEGER.dtype.value}, helper="cast", dtype=INTEGER
    )
    return repeated(b, places, index.view, view, INTEGER)


def repeated(b: Builder, x: ir.Value, view: Dims, target: Dims, dtype: ir.TensorType = FLOAT) -> ir.Value:
    """Emit the repetition of a value along its dimensions of size 1 that are larger in ``target``."""
    before, after = axes.shape(view), axes.shape(target)
    if before == after:
        return x
    sizes = [n if m != n else 1 for m, n in zip(before, after, strict=True)]
    return b.op("Expand", [x, b.integers("shape", sizes)], target, helper="repeat", dtype=dtype)


def replaced(dims: Dims, at: int, dim: axes.Dim) -> Dims:
    """Return a type with another dimension in one place."""
    return (*dims[:at], dim, *dims[at + 1 :])


def take_along(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to GatherElements."""
    x, index = (b.at(arg) for arg in node.args)
    dim = int(node.kwargs["dim"])  # type: ignore[call-overload]
    places = whole_numbers(b, index, replaced(x.view, dim, index.view[dim]))
    inputs = [b.read(x, x.view), places]
    return store(b, node, lambda view: b.op("GatherElements", inputs, view, {"axis": dim}))


def put_along(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to ScatterElements."""
    x, index, source = (b.at(arg) for arg in node.args)
    dim = int(node.kwargs["dim"])  # type: ignore[call-overload]
    places = whole_numbers(b, index, source.view)
    inputs = [b.read(x, x.view), places, b.read(source, source.view)]
    return store(b, node, lambda view: b.op("ScatterElements", inputs, view, {"axis": dim}))


RULES: dict[Callable, Rule] = {
    selection.positions: positions,
    selection.take_along: take_along,
    selection.put_along: put_along,
}
