"""Handlers of calls that combine time steps."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from svitc.frontends.capture.graph_builder import GraphBuilder, Value
from svitc.frontends.capture.handler_arguments import call
from svitc.ir.graph import input_type
from svitc.ir.operators import time


def addmm(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a weighted sum of all time steps at each step, plus a bias, as parallel spiking neurons compute it."""
    bias, weight, x, beta, alpha = call(b, node, "mat1", "mat2", "beta", "alpha", beta=1, alpha=1)
    parameters = all(isinstance(arg, fx.Node) and arg.op == "get_attr" for arg in (bias, weight))
    if not parameters or beta != 1 or alpha != 1:
        raise b.refuse(
            "addmm of values that both depend on the input is not supported", hint="Write bias + weight @ x."
        )
    mixed = b.emit("call_function", time.mix_steps, (x, weight, bias))
    assert len(input_type(mixed)) == 2
    return mixed


TIME_HANDLERS: dict[str, Callable[[GraphBuilder, fx.Node], Value]] = {"addmm": addmm}
