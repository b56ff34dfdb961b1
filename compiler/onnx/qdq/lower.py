"""Lower a quantized program to ONNX in the form that OpenVINO runs on its int8 kernels.

As in a float file, time is in the batch and values are float32. Whatever integer product reads is rounded by a
QuantizeLinear, which changes no number, since these are whole numbers of units already; weights are int8 behind a
DequantizeLinear with one scale for each channel. All sums are whole numbers below 2^24 times one scale, exact in floats
and in integers, so that the file gives the same spikes whether or not a runtime replaces the products by integer ones.
"""

from __future__ import annotations

import onnx_ir as ir

from svitc.errors import InternalError
from svitc.ir import axes
from svitc.ir.outputs import as_tuple
from svitc.ir.program import Program
from svitc.onnx import layout
from svitc.onnx.builder import FLOAT
from svitc.onnx.float_rules import apply_rule, attribute
from svitc.onnx.qdq.builder import QdqBuilder
from svitc.onnx.qdq.rules import FUNCTION_RULES, MODULE_RULES
from svitc.onnx.target import Target


def lower_nodes(program: Program, x_name: str, target: Target) -> tuple[QdqBuilder, ir.Value, list[ir.Value]]:
    """Emit every node of a quantized program.

    Args:
        program: the quantized program.
        x_name: name of the model's input.
        target: what the file is written for.

    Returns:
        the builder with the emitted nodes, the input and the outputs.

    Raises:
        UnsupportedError: a layer has options that no ONNX operator supports.
    """
    b = QdqBuilder(program, target)
    x: ir.Value | None = None
    outputs: list[ir.Value] = []
    for node in program.graph.nodes:
        b.enter(node)
        if node.op == "placeholder":
            dims = layout.fresh(program.type_of(node))
            x = ir.Value(name=x_name, shape=ir.Shape(layout.shape(dims)), type=FLOAT)
            b.stored[node] = b.store(x, dims)
        elif node.op == "output":
            outputs = [b.read(stored, stored.view) for stored in map(b.at, as_tuple(node.args[0]))]
        elif node.op == "get_attr":
            b.stored[node] = attribute(b, node, None)
        else:
            b.stored[node] = apply_rule(b, node, MODULE_RULES, FUNCTION_RULES, "QDQ")
            if axes.shape(b.stored[node].view) != program.shape_of(node):
                raise InternalError(f"{node.target} was lowered with another shape", where=node.meta.get("source"))
    if x is None or not outputs:
        raise InternalError("the program has no input or no output")
    return b, x, outputs


__all__ = ["lower_nodes"]
