"""The graph of a QDQ file under construction: float32 values with time in the batch, and bytes between Q and DQ."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from svitc.analysis.integer_range import IntegerRange, integer_ranges
from svitc.ir.axes import Dims
from svitc.ir.program import Program
from svitc.onnx import layout
from svitc.onnx.builder import Stored
from svitc.onnx.target import Target
from svitc.onnx.unrolled.weights import WeightBuilder

UINT8, INT8 = (ir.TensorType(t) for t in (ir.DataType.UINT8, ir.DataType.INT8))


class QdqBuilder(WeightBuilder):
    """Emits the nodes of a quantized program; the rules (rules.py) call it.

    Attributes:
        ranges: integer ranges of the program's values.
        from_bytes: values that a runtime gets from bytes alone, so that they need not be rounded to bytes again.
    """

    def __init__(self, program: Program, target: Target, streaming: bool = False) -> None:
        super().__init__(program, target, streaming)
        self.ranges = integer_ranges(program)
        self.from_bytes: set[ir.Value | None] = set()

    def through_bytes(self, source: Stored, numbers: IntegerRange, dims: Dims) -> ir.Value:
        """Return integers that fit a byte in the layout ``dims``, behind QuantizeLinear and DequantizeLinear.

        These stand where the value is stored, once for each value, so that a runtime pools and rearranges bytes; but
        behind a Transpose that moves elements, for which OpenVINO has no fast kernel for bytes.

        Args:
            source: float32 numbers.
            numbers: their integer range.
            dims: the layout to return.
        """
        if source.value in self.from_bytes:
            return self.read(source, dims)
        if source.value is None or source.constant_along or _moves(source.dims, dims):
            return self._dequantized(self.read(source, dims), numbers, dims)
        value = self._dequantized(source.value, numbers, source.dims)
        return self.read(Stored(value, source.dims, source.view), dims)

    def _dequantized(self, value: ir.Value, numbers: IntegerRange, dims: Dims) -> ir.Value:
        """Emit QuantizeLinear and DequantizeLinear around numbers stored in the layout ``dims``, once."""
        key = (value, "bytes", numbers.unit, numbers.low < 0)
        if key not in self.cache:
            dtype, zero = (INT8, np.int8(0)) if numbers.low < 0 else (UINT8, np.uint8(0))
            unit = [self.scalar(f"unit.{numbers.unit:g}", numbers.unit), self.small("zero_point", np.array(zero))]
            counts = self.op("QuantizeLinear", [value, *unit], dims, helper="quantize", dtype=dtype)
            self.cache[key] = self.op("DequantizeLinear", [counts, *unit], dims, helper="dequantize")
        return self.cache[key]

    def scaled_weights(
        self, path: str, weights: np.ndarray, scale: np.ndarray, axis: int, packs: bool = True
    ) -> ir.Value:
        """Emit the DequantizeLinear of int8 weights with one scale for each index of an axis.

        Args:
            path: path of the layer.
            weights: int8 array.
            scale: float32 array.
            axis: the axis.
            packs: whether weights may be stored in fewer bits; not the planes of a layer's weights.
        """
        key = ("scaled", path, axis)
        if key not in self.cache:
            stored = (self.packed if packs else self.small)(f"{path}.weight", weights)
            inputs = [stored, self.small(f"{path}.scale", scale)]
            value = self.op("DequantizeLinear", inputs, (), {"axis": axis}, helper="weight")
            value.shape = ir.Shape(weights.shape)
            self.cache[key] = value
        return self.cache[key]


def _moves(source: Dims, target: Dims) -> bool:
    """Return whether elements move between two layouts, other than between an image and its rows of channels."""
    return len(source) > 2 and any(view.op == "Transpose" for view in layout.view_operations(source, target))


__all__ = ["QdqBuilder"]
