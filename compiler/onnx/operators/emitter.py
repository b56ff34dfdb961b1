"""Emit the nodes of one operator: ONNX operators of values that share a layout, and constants."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from svitc.ir.axes import Dims
from svitc.onnx.builder import FLOAT, Attributes, Builder

BOOL = ir.TensorType(ir.DataType.BOOL)


class Emitter:
    """Writer of nodes whose values all have one layout.

    Args:
        b: builder that the nodes are emitted to.
        dims: layout of the values.
        operands: layouts of the operator's inputs, where they differ from it.
    """

    def __init__(self, b: Builder, dims: Dims, operands: Sequence[Dims] = ()) -> None:
        self.b, self.dims, self.operands = b, dims, operands

    def __call__(
        self, op_type: str, *inputs: ir.Value | float, attributes: Attributes | None = None, bools: bool = False
    ) -> ir.Value:
        """Emit a node; numbers among its inputs become constants.

        Args:
            op_type: the ONNX operator.
            inputs: its inputs.
            attributes: its attributes.
            bools: whether its output is of truth values.
        """
        values = [value if isinstance(value, ir.Value) else self.constant(value) for value in inputs]
        dtype = BOOL if bools else FLOAT
        return self.b.op(op_type, values, self.dims, attributes, helper=op_type.lower(), dtype=dtype)

    def constant(self, number: float) -> ir.Value:
        """Return a float32 constant."""
        return self.b.scalar(f"number.{number:g}", float(number))
