"""The nodes of a file that stores each value whole: float32, with time and batch as one leading dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from svitc.errors import InternalError
from svitc.ir import axes
from svitc.ir.outputs import as_tuple
from svitc.onnx.builder import Stored
from svitc.onnx.float_rules import BuilderT, LoweringRule, apply_rule, attribute


def emit_nodes(
    b: BuilderT,
    x_name: str,
    modules: Mapping[type, LoweringRule[BuilderT, Stored]],
    functions: Mapping[Any, LoweringRule[BuilderT, Stored]],
    lowering: str,
) -> tuple[BuilderT, ir.Value, list[ir.Value]]:
    """Emit every node of the builder's program; return the builder, the input and the outputs.

    Args:
        b: builder that the nodes are emitted to.
        x_name: name of the model's input.
        modules: rules by class of layer.
        functions: rules by function.
        lowering: name of the lowering, for error messages.

    Raises:
        UnsupportedError: a layer has options that no ONNX operator supports.
        InternalError: no rule applies, or a rule gives another shape than the inferred one.
    """
    program = b.program
    x: ir.Value | None = None
    outputs: list[ir.Value] = []
    for node in program.graph.nodes:
        b.enter(node)
        if node.op == "placeholder":
            x, dims, view = b.graph_input(node, x_name)
            b.stored[node] = b.store(x, dims, view)
        elif node.op == "output":
            outputs = [b.read(stored, stored.view) for stored in map(b.at, as_tuple(node.args[0]))]
        else:
            is_parameter = node.op == "get_attr"
            stored = attribute(b, node, None) if is_parameter else apply_rule(b, node, modules, functions, lowering)
            b.stored[node] = stored
            if axes.shape(stored.view) != program.shape_of(node):
                shapes = f"shape {axes.shape(stored.view)}, its type is {program.shape_of(node)}"
                raise InternalError(f"{node.target} was lowered with {shapes}", where=node.meta.get("source"))
    if x is None or not outputs:
        raise InternalError("the program has no input or no output")
    return b, x, outputs


__all__ = ["emit_nodes"]
