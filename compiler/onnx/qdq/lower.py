"""Lower a quantized program to ONNX in the form that OpenVINO runs on its int8 kernels.

As in a float file, time is in the batch and values are float32. Whatever integer product reads is rounded by a
QuantizeLinear, which changes no number, since these are whole numbers of units already; weights are int8 behind a
DequantizeLinear with one scale for each channel. All sums are whole numbers below 2^24 times one scale, exact in floats
and in integers, so that the file gives the same spikes whether or not a runtime replaces the products by integer ones.
"""

from __future__ import annotations

import onnx_ir as ir

from svitc.ir.program import Program
from svitc.onnx.qdq.builder import QdqBuilder
from svitc.onnx.qdq.rules import FUNCTION_RULES, MODULE_RULES
from svitc.onnx.stored_nodes import emit_nodes
from svitc.onnx.target import Target


def lower_nodes(
    program: Program, x_name: str, target: Target, streaming: bool = False
) -> tuple[QdqBuilder, ir.Value, list[ir.Value]]:
    """Emit every node of a quantized program.

    Args:
        program: the quantized program.
        x_name: name of the model's input.
        target: what the file is written for.
        streaming: whether the file runs one time step per call.

    Returns:
        the builder with the emitted nodes, the input and the outputs.

    Raises:
        UnsupportedError: a layer has options that no ONNX operator supports.
    """
    return emit_nodes(QdqBuilder(program, target, streaming), x_name, MODULE_RULES, FUNCTION_RULES, "QDQ")


__all__ = ["lower_nodes"]
