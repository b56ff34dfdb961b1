"""Emit the nodes of one operator: ONNX operators of values that share a layout, and constants."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from svitc.ir.axes import Axis, Dim, Dims, Kind
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
        self,
        op_type: str,
        *inputs: ir.Value | float,
        attributes: Attributes | None = None,
        bools: bool = False,
        dims: Dims | None = None,
    ) -> ir.Value:
        """Emit a node; numbers among its inputs become constants.

        Args:
            op_type: the ONNX operator.
            inputs: its inputs.
            attributes: its attributes.
            bools: whether its output is of truth values.
            dims: layout of its output, where that is another one.
        """
        values = [value if isinstance(value, ir.Value) else self.constant(value) for value in inputs]
        dtype = BOOL if bools else FLOAT
        out = self.dims if dims is None else dims
        return self.b.op(op_type, values, out, attributes, helper=op_type.lower(), dtype=dtype)

    def integers(self, name: str, *numbers: int) -> ir.Value:
        """Return a constant vector of integers: axes, sizes or places."""
        return self.b.integers(name, numbers)

    def constant(self, number: float) -> ir.Value:
        """Return a float32 constant."""
        return self.b.scalar(f"number.{number:g}", float(number))


def resized(dims: Dims, sizes: dict[int, int]) -> Dims:
    """Return a layout in which dimensions have other sizes, given by their index."""
    return tuple(sized(sizes[i]) if i in sizes else dim for i, dim in enumerate(dims))


def sized(size: int) -> Dim:
    """Return a dimension of a layout of this size, with a token of its own."""
    return () if size == 1 else (Axis("n", size, Kind.PIXEL, "n"),)
