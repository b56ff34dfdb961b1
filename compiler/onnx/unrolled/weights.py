"""Constants of a quantized program: integer weights in as few bits as possible, and the scales of their products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from svitc.ir.axes import Dims
from svitc.onnx.builder import FLOAT, Builder
from svitc.onnx.unrolled.step_gain import StepScale
from svitc.quantization.weight_grid import stored_bits


class WeightBuilder(Builder):
    """Emits integer weights, and what widens and rescales them."""

    def cast(self, value: ir.Value, dtype: ir.TensorType, dims: Dims) -> ir.Value:
        """Emit a cast, once for each value and type."""
        key = (value, "cast", dtype.dtype)
        if key not in self.cache:
            attributes = {"to": dtype.dtype.value}
            self.cache[key] = self.op("Cast", [value], dims, attributes, helper="cast", dtype=dtype)
        return self.cache[key]

    def weight(self, path: str, tensor: torch.Tensor, transpose: bool = False) -> ir.Value:
        """Return a parameter as a float32 constant; integer weights are widened when the file is loaded."""
        if tensor.dtype not in (torch.int8, torch.int16):
            return super().weight(path, tensor, transpose)
        values = tensor.numpy()
        return self.widened(path, np.ascontiguousarray(values.T) if transpose else values, None, 1.0)

    def small(self, path: str, values: np.ndarray) -> ir.Value:
        """Return a constant in its own element type; there is one for each path and type."""
        key = ("small", path, values.dtype.str)
        if key not in self.cache:
            self.cache[key] = self.initializer(path, values)
        return self.cache[key]

    def packed(self, path: str, weights: np.ndarray) -> ir.Value:
        """Return int8 weights that are stored in as few bits as possible and widened when the file is loaded.

        ONNX packs two INT4 or four INT2 numbers into a byte. Two bits hold ternary weights as they are, and the odd
        numbers from -3 to 3 as (w - 1) / 2.
        """
        integers = torch.from_numpy(np.ascontiguousarray(weights))
        bits = max(stored_bits(integers), self.target.narrowest)
        if bits == 8:
            return self.small(path, weights)
        key = ("packed", path)
        if key not in self.cache:
            kind = ir.DataType.INT4 if bits == 4 else ir.DataType.INT2
            odd = bits == 2 and bool((integers % 2 != 0).all())
            numbers = (weights - 1) // 2 if odd else weights
            stored = self.initializer(path, numbers.astype(kind.numpy()))
            if odd:
                wide = self.cast(stored, FLOAT, ())
                wide.shape = ir.Shape(weights.shape)
                double = self._folded("Mul", wide, self.scalar("factor.2", 2), weights.shape)
                stored = self._folded("Add", double, self.scalar("odd", 1), weights.shape)
            value = self.cast(stored, ir.TensorType(ir.DataType.INT8), ())
            value.shape = ir.Shape(weights.shape)
            self.cache[key] = value
        return self.cache[key]

    def widened(self, path: str, weights: np.ndarray, scale: np.ndarray | None, gain: float) -> ir.Value:
        """Return integer weights as floats, times a scale and a gain; the products are folded when the file is loaded.

        Args:
            path: name of the weights in the file.
            weights: int8 or int16 array.
            scale: float32 array that broadcasts to the weights' shape; None for 1.
            gain: factor for all weights.
        """
        key = ("widened", path, scale is None, gain)
        if key not in self.cache:
            value = self.cast(self.small(path, weights), FLOAT, ())
            value.shape = ir.Shape(weights.shape)
            if scale is not None:
                column = self.small(f"{path.removesuffix('.weight')}.scale", scale)
                value = self._folded("Mul", value, column, weights.shape)
            if gain != 1:
                value = self._folded("Mul", value, self.scalar(f"factor.{gain:g}", gain), weights.shape)
            self.cache[key] = value
        return self.cache[key]

    def gained(self, path: str, values: np.ndarray, gain: float) -> ir.Value:
        """Return a constant times a gain; the product is folded when the file is loaded."""
        value = self.small(path, values)
        if gain == 1:
            return value
        key = ("gained", path, gain)
        if key not in self.cache:
            self.cache[key] = self._folded("Mul", value, self.scalar(f"factor.{gain:g}", gain), values.shape)
        return self.cache[key]

    def _folded(self, op_type: str, left: ir.Value, right: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """Emit an operation on constants, which ONNX Runtime computes when it loads the file."""
        value = self.op(op_type, [left, right], (), helper="constant")
        value.shape = ir.Shape(shape)
        return value

    def rescaled(
        self,
        path: str,
        sums: ir.Value,
        layer: nn.Module,
        unit: float,
        step: StepScale,
        dims: Dims,
        has_bias: bool = True,
    ) -> ir.Value:
        """Emit ``(sums * unit * scale + bias) * step.factor``; the scale is stored as uint16 where that loses no bit.

        Args:
            path: path of the layer.
            sums: result of the layer's matrix product.
            layer: quantized layer with one scale and one bias for each channel.
            unit: what a sum of 1 stands for, before the scale.
            step: factor of the time step.
            dims: layout of the result.
            has_bias: whether to add the bias.
        """
        scale, bias = layer.get_buffer("scale").numpy(), layer.get_buffer("bias").numpy()
        exponent = int(np.frexp(scale)[1].min()) - 8
        mantissas = np.ldexp(scale.astype(np.float64), -exponent)
        if mantissas.max() < 65536 and (mantissas == np.floor(mantissas)).all():
            column = self.cast(self.small(f"{path}.scale", mantissas.astype(np.uint16)), FLOAT, ())
            column.shape = ir.Shape(scale.shape)
            column_unit = 2.0**exponent
        else:  # scales too far apart for one exponent
            column, column_unit = self.small(f"{path}.scale", scale), 1.0
        product = self.scaled(sums, unit * step.factor * column_unit, dims, column, step.repetition)
        if not has_bias:
            return product
        return self.op("Add", [product, self.gained(f"{path}.bias", bias, step.factor)], dims, helper="add_bias")

    def scaled(
        self, sums: ir.Value, number: float, dims: Dims, column: ir.Value | None = None, repetition: int = 0
    ) -> ir.Value:
        """Emit a matrix product's result times a number, and times one constant for each column.

        On the CPU the factor is written as a product with something that ONNX Runtime does not fold. ONNX Runtime then
        replaces the integer product, the cast, this product and the addition of a bias by one of its own operators,
        which writes floats directly (0.3 instead of 0.7 ms for 784 x 384 x 384). Other targets have no such operator.
        It does not replace those that share a factor, and merges equal products; ``repetition`` is a different number
        for each of those, for which the same factor is written as another product.
        """
        floats = sums if sums.type == FLOAT else self.cast(sums, FLOAT, dims)
        if self.target.hides_scales and sums.type != FLOAT:
            factor = self._unfolded(number, repetition)
            column = self.scalar("factor.1", 1) if column is None else column
        else:
            factor = self.scalar(f"factor.{number:g}", number)
        if column is not None:
            factor = self._folded("Mul", factor, column, tuple(column.shape or ()))  # type: ignore[arg-type]
        return self.op("Mul", [floats, factor], dims, helper="rescale")

    def _unfolded(self, number: float, repetition: int) -> ir.Value:
        """Return a number that ONNX Runtime computes in every run, since it does not fold DequantizeLinear."""
        share = 0.5 ** (repetition % 64 + 1)  # powers of two, so that no product rounds; 2^-64 is still far from 0
        name = f"share.{share:g}" if repetition else "half"
        if name not in self.cache:
            one = [self.small("one", np.array(1, np.uint8)), self.scalar(name, share)]
            self.cache[name] = self.op("DequantizeLinear", one, (), helper="half")
        key = ("unfolded", number, repetition)
        if key not in self.cache:
            rest = number / share
            self.cache[key] = self._folded("Mul", self.cache[name], self.scalar(f"factor.{rest:g}", rest), ())
        return self.cache[key]


__all__ = ["WeightBuilder"]
