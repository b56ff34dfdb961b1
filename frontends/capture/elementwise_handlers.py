"""Handlers of activations, comparisons and other elementwise calls, by the name that a model calls them by."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx

from svitc.frontends.capture.graph_builder import GraphBuilder, Value
from svitc.frontends.capture.handler_arguments import call
from svitc.ir import ops
from svitc.ir.operators import pointwise, several

Handler = Callable[[GraphBuilder, fx.Node], Value]


class Parameter(NamedTuple):
    """A parameter of a call that becomes an attribute.

    Attributes:
        name: Its name in the call.
        attribute: Name of the attribute.
        default: Its value where the call does not give one.
    """

    name: str
    attribute: str
    default: object


def pointwise_call(target: Callable, *parameters: Parameter) -> Handler:
    """Return a handler of an operator of one tensor."""

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        names, defaults = [p.name for p in parameters], {p.name: p.default for p in parameters}
        x, *values = call(b, node, *names, **defaults)
        return b.emit("call_function", target, (x,), dict(zip((p.attribute for p in parameters), values, strict=True)))

    return handler


def clamp_call(low: str | float | None, high: str | float | None) -> Handler:
    """Return a handler of clipping; bounds are numbers or the names of parameters."""
    names = [bound for bound in (low, high) if isinstance(bound, str)]

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        defaults = {"min_val": -1.0, "max_val": 1.0}
        x, *values = call(b, node, *names, **{n: defaults[n] for n in names if n in defaults})
        given = dict(zip(names, values, strict=True))
        bounds = [given[bound] if isinstance(bound, str) else bound for bound in (low, high)]
        for bound, target in zip(bounds, (several.maximum, several.minimum), strict=True):
            if isinstance(bound, fx.Node):
                x = b.emit("call_function", target, (x, bound))
        numbers = [None if isinstance(bound, fx.Node) else bound for bound in bounds]
        if numbers == [None, None]:
            return x
        return b.emit("call_function", pointwise.clamp, (x,), dict(zip(("low", "high"), numbers, strict=True)))

    return handler


def comparison(strict: bool, below: bool) -> Handler:
    """Return a handler of ``x >= y``: a neuron without membrane that fires where ``x - y`` reaches 0.

    Args:
        strict: Whether equal values do not fire (``x > y``), or do so where ``below``.
        below: Whether it fires where ``x`` is below.
    """

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        x, y = operands(b, node)
        is_below = below
        if not isinstance(x, fx.Node):  # 1 > x is x < 1
            x, y, is_below = y, x, not below
        if isinstance(y, fx.Node):
            x, y = b.emit("call_function", operator.sub, (x, y)), 0.0
        if y == 0 and x.target is pointwise.add_number:  # v - threshold >= 0 is v >= threshold, bit for bit
            x, y = x.args[0], -x.kwargs["number"]
        if not math.isfinite(y):
            raise b.refuse(f"a comparison with {y}", hint="Write a finite number for it that no value reaches, as 1e9.")
        path = b.layer("step", ops.Step(float(y), strict != is_below))
        fired = b.emit("call_module", path, (x,))
        return b.emit("call_function", pointwise.subtract_from, (fired,), {"number": 1}) if is_below else fired

    return handler


def operands(b: GraphBuilder, node: fx.Node) -> tuple[Any, Any]:
    """Return the two operands of a call, tensors or numbers."""
    args, kwargs = b.arg(node.args), b.arg(node.kwargs)
    left, right = (*args, *(kwargs[k] for k in ("input", "other", "exponent") if k in kwargs))[:2]
    return left, right


def two_tensors(target: Callable) -> Handler:
    """Return a handler of an operator of two tensors."""

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        return b.emit("call_function", target, operands(b, node))

    return handler


def extreme(target: Callable, bound: str) -> Handler:
    """Return a handler of ``torch.maximum`` and ``torch.max(x, y)``, and their opposites."""

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        x, y = operands(b, node)
        if isinstance(x, fx.Node) and isinstance(y, fx.Node):
            return b.emit("call_function", target, (x, y))
        attributes = {"low": None, "high": None, bound: y if isinstance(x, fx.Node) else x}
        return b.emit("call_function", pointwise.clamp, (x if isinstance(x, fx.Node) else y,), attributes)

    return handler


def power(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a power with a number or a tensor as its exponent."""
    x, exponent = operands(b, node)
    if isinstance(x, fx.Node) and isinstance(exponent, fx.Node):
        return b.emit("call_function", several.power_of, (x, exponent))
    if not isinstance(x, fx.Node):
        raise b.refuse("a number to the power of a tensor is not supported", hint="Write exp(x * log(n)).")
    return b.emit("call_function", pointwise.power, (x,), {"exponent": exponent})


def square(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a square."""
    return b.emit("call_function", pointwise.power, (b.arg(node.args[0]),), {"exponent": 2})


def where(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a choice between two values, of which either may be a number."""
    condition, x, y = b.arg(node.args)
    return choose(b, condition, x, y)


def masked_fill(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``x.masked_fill(condition, number)``."""
    x, condition, value = call(b, node, "mask", "value")
    return choose(b, condition, value, x)


def choose(b: GraphBuilder, condition: fx.Node, x: Any, y: Any) -> fx.Node:
    """Emit ``x`` where a condition is not 0, else ``y``."""
    like = next((v for v in (x, y) if isinstance(v, fx.Node)), condition)
    filled = [v if isinstance(v, fx.Node) else filled_with(b, like, v) for v in (x, y)]
    return b.emit("call_function", several.where, (condition, *filled))


def filled_with(b: GraphBuilder, like: fx.Node, number: float) -> fx.Node:
    """Emit a tensor of the shape of another one, with the same number everywhere."""
    if not math.isfinite(number):
        number = math.copysign(torch.finfo(torch.float32).max, number)
    zero = b.emit("call_function", pointwise.clamp, (like,), {"low": 0.0, "high": 0.0})
    return zero if number == 0 else b.emit("call_function", pointwise.add_number, (zero,), {"number": number})


def logical_not(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit the opposite of a truth value, which is 0 or 1 here."""
    return b.emit("call_function", pointwise.subtract_from, (b.arg(node.args[0]),), {"number": 1})


def logical_and(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit the product of two truth values."""
    return b.emit("call_function", operator.mul, operands(b, node))


_SLOPE = Parameter("negative_slope", "negative_slope", 0.01)
_SOFTPLUS = (Parameter("beta", "beta", 1), Parameter("threshold", "threshold", 20))
_LIMITS = ("min", "max")
ELEMENTWISE_HANDLERS: dict[str, Handler] = {
    "relu": pointwise_call(pointwise.relu),
    "gelu": pointwise_call(pointwise.gelu, Parameter("approximate", "approximate", "none")),
    **dict.fromkeys(("silu", "swish"), pointwise_call(pointwise.silu)),
    "mish": pointwise_call(pointwise.mish),
    "sigmoid": pointwise_call(pointwise.sigmoid),
    "tanh": pointwise_call(pointwise.tanh),
    "hardswish": pointwise_call(pointwise.hard_swish),
    "hardsigmoid": pointwise_call(pointwise.hard_sigmoid),
    "leaky_relu": pointwise_call(pointwise.leaky_relu, _SLOPE),
    "elu": pointwise_call(pointwise.elu, Parameter("alpha", "alpha", 1.0)),
    "softplus": pointwise_call(pointwise.softplus, *_SOFTPLUS),
    "relu6": clamp_call(0.0, 6.0),
    "hardtanh": clamp_call("min_val", "max_val"),
    **dict.fromkeys(("clamp", "clip"), clamp_call(*_LIMITS)),
    "clamp_min": clamp_call("min", None),
    "clamp_max": clamp_call(None, "max"),
    "exp": pointwise_call(pointwise.exp),
    "log": pointwise_call(pointwise.log),
    "sqrt": pointwise_call(pointwise.sqrt),
    "rsqrt": pointwise_call(pointwise.rsqrt),
    "reciprocal": pointwise_call(pointwise.reciprocal),
    **dict.fromkeys(("abs", "absolute"), pointwise_call(pointwise.absolute)),
    **dict.fromkeys(("neg", "negative"), pointwise_call(pointwise.negative)),
    **dict.fromkeys(("sign", "sgn"), pointwise_call(pointwise.sign)),
    "floor": pointwise_call(pointwise.floor),
    "ceil": pointwise_call(pointwise.ceil),
    "round": pointwise_call(pointwise.round_half_even),
    **dict.fromkeys(("trunc", "fix"), pointwise_call(pointwise.truncate)),
    "sin": pointwise_call(pointwise.sine),
    "cos": pointwise_call(pointwise.cosine),
    "erf": pointwise_call(pointwise.error_function),
    "pow": power,
    "square": square,
    **dict.fromkeys(("ge", "greater_equal"), comparison(strict=False, below=False)),
    **dict.fromkeys(("gt", "greater"), comparison(strict=True, below=False)),
    **dict.fromkeys(("le", "less_equal"), comparison(strict=False, below=True)),
    **dict.fromkeys(("lt", "less"), comparison(strict=True, below=True)),
    **dict.fromkeys(("logical_not", "bitwise_not", "invert"), logical_not),
    **dict.fromkeys(("logical_and", "bitwise_and", "and_", "and"), logical_and),
    **dict.fromkeys(("logical_or", "bitwise_or", "or_", "or"), two_tensors(several.maximum)),
    **dict.fromkeys(("maximum", "fmax"), extreme(several.maximum, "low")),
    **dict.fromkeys(("minimum", "fmin"), extreme(several.minimum, "high")),
    "where": where,
    "masked_fill": masked_fill,
}
