"""ONNX forms of the operators that change each element alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from svitc.ir.operators import pointwise
from svitc.onnx.operators.emitter import Emitter

Form = Callable[[Emitter, ir.Value, dict[str, Any]], ir.Value]


def _one(op_type: str) -> Form:
    return lambda e, x, _: e(op_type, x)


def _gelu(e: Emitter, x: ir.Value, attributes: dict[str, Any]) -> ir.Value:
    """Write GELU out, since Gelu is an operator only from opset 20 on; ONNX Runtime fuses it."""
    if attributes["approximate"] == "tanh":
        cube = e("Mul", e("Mul", x, x), x)
        inner = e("Mul", e("Add", x, e("Mul", cube, 0.044715)), math.sqrt(2 / math.pi))
        return e("Mul", e("Mul", x, 0.5), e("Add", e("Tanh", inner), 1.0))
    raised = e("Add", e("Erf", e("Mul", x, math.sqrt(0.5))), 1.0)
    return e("Mul", e("Mul", x, raised), 0.5)


def _softplus(e: Emitter, x: ir.Value, attributes: dict[str, Any]) -> ir.Value:
    beta, threshold = attributes["beta"], attributes["threshold"]
    scaled = x if beta == 1 else e("Mul", x, beta)
    soft = e("Softplus", scaled)
    soft = soft if beta == 1 else e("Div", soft, beta)
    return e("Where", e("Greater", scaled, threshold, bools=True), x, soft)  # as in torch, linear above


def _clamp(e: Emitter, x: ir.Value, attributes: dict[str, Any]) -> ir.Value:
    low, high = attributes["low"], attributes["high"]
    if low is None:
        return e("Min", x, high)
    return e("Max", x, low) if high is None else e("Clip", x, low, high)


def _elu(e: Emitter, x: ir.Value, attributes: dict[str, Any]) -> ir.Value:
    return e("Elu", x, attributes={"alpha": float(attributes["alpha"])})


def _leaky_relu(e: Emitter, x: ir.Value, attributes: dict[str, Any]) -> ir.Value:
    return e("LeakyRelu", x, attributes={"alpha": float(attributes["negative_slope"])})


def _hard_sigmoid(e: Emitter, x: ir.Value, _: dict[str, Any]) -> ir.Value:
    return e("HardSigmoid", x, attributes={"alpha": 1 / 6, "beta": 0.5})


def _truncate(e: Emitter, x: ir.Value, _: dict[str, Any]) -> ir.Value:
    return e("Mul", e("Sign", x), e("Floor", e("Abs", x)))


FORMS: dict[Callable, Form] = {
    pointwise.relu: _one("Relu"),
    pointwise.gelu: _gelu,
    pointwise.silu: lambda e, x, _: e("Mul", x, e("Sigmoid", x)),
    pointwise.mish: lambda e, x, _: e("Mul", x, e("Tanh", e("Softplus", x))),
    pointwise.sigmoid: _one("Sigmoid"),
    pointwise.tanh: _one("Tanh"),
    pointwise.hard_swish: _one("HardSwish"),
    pointwise.hard_sigmoid: _hard_sigmoid,
    pointwise.leaky_relu: _leaky_relu,
    pointwise.elu: _elu,
    pointwise.softplus: _softplus,
    pointwise.clamp: _clamp,
    pointwise.exp: _one("Exp"),
    pointwise.log: _one("Log"),
    pointwise.sqrt: _one("Sqrt"),
    pointwise.rsqrt: lambda e, x, _: e("Reciprocal", e("Sqrt", x)),
    pointwise.reciprocal: _one("Reciprocal"),
    pointwise.absolute: _one("Abs"),
    pointwise.negative: _one("Neg"),
    pointwise.sign: _one("Sign"),
    pointwise.floor: _one("Floor"),
    pointwise.ceil: _one("Ceil"),
    pointwise.round_half_even: _one("Round"),
    pointwise.truncate: _truncate,
    pointwise.sine: _one("Sin"),
    pointwise.cosine: _one("Cos"),
    pointwise.error_function: _one("Erf"),
    pointwise.power: lambda e, x, a: e("Mul", x, x) if a["exponent"] == 2 else e("Pow", x, a["exponent"]),
    pointwise.add_number: lambda e, x, a: e("Add", x, a["number"]),
    pointwise.subtract_from: lambda e, x, a: e("Sub", a["number"], x),
    pointwise.divide_number: lambda e, x, a: e("Div", a["number"], x),
}
