"""ONNX forms of a reshape that the axes of a value do not explain, and of one that only changes what they mean."""

from __future__ import annotations

from torch import fx

from svitc.onnx import layout
from svitc.onnx.builder import Builder, Stored


def regroup_rule(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to a Reshape of the program's own dimensions."""
    x = b.at(node.args[0])
    view = layout.fresh(b.program.type_of(node))
    sizes = b.integers("shape", list(node.kwargs["sizes"]))  # type: ignore[call-overload]
    return b.store(b.op("Reshape", [b.read(x, x.view), sizes], view), view)


def at_steps_rule(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to the value as it is, in the program's own dimensions."""
    x = b.at(node.args[0])
    return b.store(b.read(x, x.view), layout.fresh(b.program.type_of(node)))
