"""ONNX forms of the elementwise operators of several tensors."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from svitc.ir.operators import several
from svitc.onnx.operators.emitter import BOOL, Emitter

Form = Callable[..., ir.Value]


def _where(e: Emitter, condition: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    truth = e.b.op("Cast", [condition], e.operands[0], {"to": ir.DataType.BOOL.value}, helper="cast", dtype=BOOL)
    return e("Where", truth, x, y)


FORMS: dict[Callable, Form] = {
    several.maximum: lambda e, x, y: e("Max", x, y),
    several.minimum: lambda e, x, y: e("Min", x, y),
    several.divide: lambda e, x, y: e("Div", x, y),
    several.power_of: lambda e, x, y: e("Pow", x, y),
    several.where: _where,
}
