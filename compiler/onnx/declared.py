"""Check that a file is made of nothing but what its target declares (target.py)."""

from __future__ import annotations

import onnx_ir as ir

from svitc.errors import UnsupportedError
from svitc.onnx.target import Target

KEPT = ("DequantizeLinear", "QuantizeLinear")  # not computed at load even where all inputs are constants


def check_declared(model: ir.Model, target: Target) -> None:
    """Check the operators and element types of a file.

    Nodes whose inputs are all constants are computed when the file is loaded, and their types are not checked.

    Raises:
        UnsupportedError: a node has an operator or a type that the target does not declare; the error names the node.
    """
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        constants = set(graph.initializers.values())
        for node in graph:
            inputs = [value for value in node.inputs if value is not None]
            if node.domain:  # a call of a function, which is checked itself
                continue
            if node.op_type not in KEPT and all(value in constants for value in inputs):
                constants.update(node.outputs)
                continue
            values = [value for value in (*inputs, *node.outputs) if value not in constants]
            dtypes = [value.dtype for value in values if value.dtype is not None]
            first = dtypes[0] if dtypes else ir.DataType.FLOAT
            undeclared = next((dtype for dtype in dtypes if dtype not in target.types), None)
            if undeclared is None and not target.accepts(node.op_type, first):
                undeclared = first
            if undeclared is not None:
                raise UnsupportedError(
                    f"{node.name}: {target.runtime} has no {node.op_type} of {undeclared.name.lower()} "
                    f"that target {target.name} may use",
                    hint="--target cpu writes any model.",
                )


__all__ = ["check_declared"]
