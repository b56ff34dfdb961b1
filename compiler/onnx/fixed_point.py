"""The rule for FixedPoint where a value is stored whole: in QDQ files, and for operations on all steps at once."""

from __future__ import annotations

from torch import fx

from svitc.ir import ops
from svitc.onnx import layout
from svitc.onnx.builder import Builder, Stored


def fixed_point(b: Builder, node: fx.Node, module: ops.FixedPoint, as_stored: bool = False) -> Stored:
    """Lower the rounding of a real input to whole numbers of steps.

    It is written out, as runtimes may compute a QuantizeLinear of real numbers with one more rounding.

    Args:
        b: builder that the nodes are emitted to.
        node: the operation.
        module: its step and limit.
        as_stored: whether the result may have the layout of the input, whatever that is.
    """
    x = b.at(node.args[0])
    dims = x.dims if as_stored and x.value is not None and not x.constant_along else layout.physical(x.view)
    scaled = b.op("Mul", [b.read(x, dims), b.scalar("steps", 1 / module.step)], dims, helper="steps")
    limits = [b.scalar("lowest", -module.limit), b.scalar("highest", module.limit)]
    value = b.op("Clip", [b.op("Round", [scaled], dims, helper="round"), *limits], dims)
    return b.store(value, dims, x.view)


__all__ = ["fixed_point"]
