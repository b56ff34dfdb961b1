"""ONNX forms of the operators that repeat and pad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from svitc.ir import axes
from svitc.ir.axes import Dims
from svitc.ir.operators import structure
from svitc.ir.operators.structure import padding_of
from svitc.onnx.operators.emitter import Emitter, resized

Form = Callable[..., ir.Value]  # of an emitter, the inputs in the program's dimensions, and the attributes


def cut(e: Emitter, x: ir.Value, dims: Dims, at: int, bounds: slice) -> tuple[ir.Value, Dims]:
    """Emit a slice of one dimension, and return it with its layout.

    Args:
        e: emitter.
        x: the value.
        dims: its layout.
        at: index of the dimension.
        bounds: the places that remain, none of them negative.
    """
    n = axes.size(dims[at])
    start, stop, step = bounds.indices(n)
    out = resized(dims, {at: len(range(start, stop, step))})
    names = ("starts", "ends", "axes", "steps")
    places = [e.integers(name, number) for name, number in zip(names, (start, stop, at, step), strict=True)]
    return e("Slice", x, *(places[:3] if step == 1 else places), dims=out), out


def _tile(e: Emitter, x: ir.Value, *, repeats: tuple[int, ...]) -> ir.Value:
    return e("Tile", x, e.integers("repeats", *repeats))


def _pad(e: Emitter, x: ir.Value, *, padding: Any, mode: str = "constant", number: float = 0.0) -> ir.Value:
    dims = e.operands[0]
    pads = padding_of(dims, padding)
    for at, (before, after) in enumerate(pads):
        if before < 0 or after < 0:
            bounds = slice(max(0, -before), axes.size(dims[at]) - max(0, -after), 1)
            x, dims = cut(e, x, dims, at, bounds)
    pads = [(max(before, 0), max(after, 0)) for before, after in pads]
    if not any(map(any, pads)):
        return x
    if mode == "circular":
        return _wrapped(e, x, dims, pads)
    amounts = e.integers("pads", *(before for before, _ in pads), *(after for _, after in pads))
    value = [number] if number else []
    names = {"replicate": "edge", "reflect": "reflect", "constant": "constant"}
    return e("Pad", x, amounts, *value, attributes={"mode": names[mode]})


def _wrapped(e: Emitter, x: ir.Value, dims: Dims, pads: list[tuple[int, int]]) -> ir.Value:
    """Emit circular padding, of which Pad is capable only from opset 19 on."""
    for at, (before, after) in enumerate(pads):
        n = axes.size(dims[at])
        parts = [cut(e, x, dims, at, slice(n - before, n, 1))[0]] if before else []
        parts += [x, *([cut(e, x, dims, at, slice(0, after, 1))[0]] if after else [])]
        if len(parts) > 1:
            dims = resized(dims, {at: n + before + after})
            x = e("Concat", *parts, attributes={"axis": at}, dims=dims)
    return x


FORMS: dict[Callable, Form] = {
    structure.tile: _tile,
    structure.pad_zeros: _pad,
    structure.pad_edges: _pad,
    structure.pad_number: _pad,
}
