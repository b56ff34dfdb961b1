"""ONNX forms of the operators that take, join and move parts of dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from torch import fx

from svitc.ir import axes
from svitc.ir.operators import slicing
from svitc.onnx import layout
from svitc.onnx.builder import Builder, Stored

Rule = Callable[[Builder, fx.Node, Any], Stored]
END = 2**31 - 1  # of any dimension
Part = tuple[int, int, int]  # start, stop, step


def in_program_order(b: Builder, node: fx.Node) -> list[ir.Value]:
    """Return the inputs of a node with the program's own dimensions."""
    return [b.read(stored, stored.view) for stored in map(b.at, node.args)]


def store(b: Builder, node: fx.Node, emit: Callable[[axes.Dims], ir.Value]) -> Stored:
    """Record the value of a node that has the program's own dimensions."""
    view = layout.fresh(b.program.type_of(node))
    return b.store(emit(view), view)


def sliced(b: Builder, x: ir.Value, view: axes.Dims, parts: dict[int, Part], helper: str | None = None) -> ir.Value:
    """Emit a Slice along some dimensions."""
    rows = list(zip(*parts.values(), strict=True))
    starts, ends, steps = (b.integers(name, row) for name, row in zip(("starts", "ends", "steps"), rows, strict=True))
    return b.op("Slice", [x, starts, ends, b.integers("axes", list(parts)), steps], view, helper=helper)


def concatenate(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to Concat."""
    axis = {"axis": int(node.kwargs["dim"])}  # type: ignore[call-overload]
    return store(b, node, lambda view: b.op("Concat", in_program_order(b, node), view, axis))


def slice_range(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to Slice."""
    dim, *part = (int(node.kwargs[key]) for key in ("dim", "start", "stop", "step"))  # type: ignore[call-overload]
    return store(b, node, lambda view: sliced(b, in_program_order(b, node)[0], view, {dim: tuple(part)}))  # type: ignore[dict-item]


def select_indices(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to Gather."""
    indices = b.integers("indices", list(node.kwargs["indices"]))  # type: ignore[call-overload]
    axis = {"axis": int(node.kwargs["dim"])}  # type: ignore[call-overload]
    return store(b, node, lambda view: b.op("Gather", [in_program_order(b, node)[0], indices], view, axis))


def flip(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to a Slice with negative steps."""
    dims: Any = node.kwargs["dims"]
    return store(
        b, node, lambda view: sliced(b, in_program_order(b, node)[0], view, dict.fromkeys(dims, (-1, -END, -1)))
    )


def roll(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower each dimension to two Slices, joined in the other order."""
    value, view = in_program_order(b, node)[0], layout.fresh(b.program.type_of(node))
    shifts: Any = node.kwargs["shifts"]
    dims: Any = node.kwargs["dims"]
    shape = axes.shape(view)
    for dim, shift in zip(dims, shifts, strict=True):
        cut = -shift % shape[dim]
        if cut:
            parts = []
            for size, part in ((shape[dim] - cut, (cut, END, 1)), (cut, (0, cut, 1))):
                token = axes.Axis("part", size, axes.Kind.PIXEL, "n")
                parts.append(sliced(b, value, (*view[:dim], (token,), *view[dim + 1 :]), {dim: part}, "part"))
            value = b.op("Concat", parts, view, {"axis": dim}, helper="rolled")
    return b.store(value, view)


RULES: dict[Callable, Rule] = {
    slicing.concatenate: concatenate,
    slicing.slice_range: slice_range,
    slicing.select_indices: select_indices,
    slicing.flip: flip,
    slicing.roll: roll,
}
