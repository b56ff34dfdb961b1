"""The graph of a quantized program under construction: unrolled over time, channels last, small element types.

A value of the program is one ONNX value for each time step, so that nothing must be split or joined, one step's numbers
stay in the processor's cache, and a current can carry a factor of its own at each step. Its rows are pixels or tokens,
its columns channels, as matrix products read and write them. View operations change only how a value is seen
(layout.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn

from svitc.analysis.integer_range import IntegerRange, integer_ranges
from svitc.errors import InternalError, UnsupportedError
from svitc.ir import axes
from svitc.ir.axes import Dims, Kind
from svitc.ir.program import Program
from svitc.onnx import layout
from svitc.onnx.builder import FLOAT, Builder, Stored
from svitc.onnx.target import CPU, Target
from svitc.quantization.weight_grid import stored_bits

I32, I64, BOOL = (ir.TensorType(t) for t in (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL))


@dataclass(frozen=True)
class Steps:
    """A value of the program and how it is stored in the ONNX graph.

    Attributes:
        values: one ONNX value for each time step; a single one if it serves for all steps (a static image) or if the
            value has no time.
        dims: layout of each ONNX value.
        view: its dimensions in the program, time included, in the same tokens.
        dtype: element type. Whole numbers are stored in the target's spike type, or as int32.
        unit: what a stored 1 stands for.
        gain: if not 0, step t holds ``factor(gain, t)`` times the value (step_gain.py).
        offset: added to the stored numbers, so that unsigned bytes can hold negative ones.
        parameter: path of the parameter, for a value that no node computes.
    """

    values: tuple[ir.Value, ...]
    dims: Dims
    view: Dims
    dtype: ir.TensorType = FLOAT
    unit: float = 1.0
    gain: int = 0
    offset: int = 0
    parameter: str = ""

    @property
    def timeless(self) -> Dims:
        """Return the dimensions of one step's value."""
        return timeless(self.view)

    @property
    def static(self) -> bool:
        """Return whether one value serves for all steps."""
        return len(self.values) == 1


def timeless(view: Dims) -> Dims:
    """Return a view without its time axes: the dimensions of one step's value."""
    return tuple(tuple(token for token in dim if token.kind != Kind.TIME) for dim in view)


class UnrolledBuilder(Builder):
    """Emits the nodes of a quantized program; the rules (rules.py) call it.

    Attributes:
        grids: integer ranges of the program's values.
        steps: number of time steps.
        at_node: the stored value of each lowered node.
        gains: gains of the nodes that are emitted at another scale (step_gain.py).
        spike: element type of stored spikes, and of other values that fit it.
        middle: the byte that stands for 0 in operands with negative numbers.
    """

    def __init__(self, program: Program, target: Target = CPU) -> None:
        super().__init__(program, target)
        self.spike = ir.TensorType(target.spike)
        self.middle = 0 if target.spike == ir.DataType.INT8 else 128
        self.grids: dict[fx.Node, IntegerRange] = integer_ranges(program)
        self.at_node: dict[fx.Node, Steps] = {}
        self.gains: dict[fx.Node, int] = {}
        self._emitted: set[str] = set()  # layers whose main node exists
        sizes = {
            token.size
            for node in program.graph.nodes
            for dim in program.type_of(node)
            for token in dim
            if token.kind == Kind.TIME
        }
        if len(sizes) > 1:
            raise UnsupportedError("values of different numbers of time steps have no integer lowering")
        self.steps = sizes.pop() if sizes else 1

    def _main_name(self) -> str:
        """Return the layer's path, and for its further steps the path with a number."""
        first = self.name not in self._emitted
        self._emitted.add(self.name)
        return self.name if first else self._node_names(f"{self.name}.t1" if self.name else "step")

    def of(self, node: object) -> Steps:
        """Return the stored value of a node.

        Args:
            node: argument of another node.

        Raises:
            InternalError: the argument is not a tensor that was lowered.
        """
        if not isinstance(node, fx.Node) or node not in self.at_node:
            raise InternalError(f"{self.name} reads {node!r}, which is not a tensor that was lowered")
        return self.at_node[node]

    def fresh_view(self, node: fx.Node) -> Dims:
        """Return new tokens for a node's value.

        Raises:
            UnsupportedError: time is an inner factor of a dimension.
        """
        view = layout.fresh(self.program.type_of(node))
        for dim in view:
            kinds = [token.kind for token in dim]
            if Kind.TIME in kinds[1:]:
                raise UnsupportedError(f"{self.name}: time within {axes.show(view)} has no integer lowering")
        return view

    def read_step(self, source: Steps, t: int, dims: Dims, dtype: ir.TensorType = FLOAT, unit: float = 1.0) -> ir.Value:
        """Return the value of one step, emitting the casts and view operations that this takes.

        Args:
            source: the value.
            t: time step, from 0.
            dims: layout to read it in.
            dtype: element type to read it in. Floats are the real numbers, integers are multiples of ``unit``.
            unit: what an integer 1 stands for.
        """
        if source.parameter:
            return self._parameter(Stored(None, source.dims, source.view, source.parameter), dims)
        value = source.values[0 if source.static else t]
        cast_last = source.dtype in (self.spike, BOOL)  # moving bytes is cheaper than moving what they are widened to
        if not cast_last:
            if source.dtype == FLOAT and dtype != FLOAT and unit != 1:
                value = self.times(value, 1 / unit, source.dims)
            value = self._cast(value, source, dtype, source.dims)
        for view in layout.view_operations(source.dims, dims):
            key = (value, view.op, view.dims)
            if key not in self.cache:
                kind = source.dtype if cast_last else dtype
                if view.op == "Reshape":
                    target = self.integers("shape", view.operand)
                    moved = self.op("Reshape", [value, target], view.dims, helper="reshape", dtype=kind)
                else:
                    perm = {"perm": list(view.operand)}
                    moved = self.op("Transpose", [value], view.dims, perm, helper="transpose", dtype=kind)
                self.cache[key] = moved
            value = self.cache[key]
        return self._cast(value, source, dtype, dims) if cast_last else value

    def _cast(self, value: ir.Value, source: Steps, dtype: ir.TensorType, dims: Dims) -> ir.Value:
        """Convert stored numbers to another type; for floats apply the offset and the unit as well."""
        if source.dtype != dtype:
            value = self.cast(value, dtype, dims)
        if source.offset and dtype == FLOAT:
            value = self.op("Sub", [value, self.scalar("middle", source.offset)], dims, helper="signed")
        return self.times(value, source.unit, dims) if dtype == FLOAT and source.unit != 1 else value

    def operand(self, source: Steps, t: int, dims: Dims, grid: IntegerRange | None) -> ir.Value:
        """Return one step's value as an operand of a matrix product.

        Returns:
            bytes that count the grid's unit (around ``middle`` if some numbers are negative), or float32 where they do
            not fit.
        """
        if grid is not None and grid.is_signed_byte:
            if source.offset == self.middle and source.dtype == self.spike:
                return self.read_step(source, t, dims, self.spike)
            return self.signed(self.read_step(source, t, dims), grid.unit, dims)
        if grid is not None and self.fits(grid):
            return self.read_step(source, t, dims, self.spike, grid.unit)
        return self.read_step(source, t, dims)

    def zero_byte(self, grid: IntegerRange) -> int:
        """Return the byte that stands for 0 in an operand with this range."""
        return self.middle if grid.is_signed_byte else 0

    def signed(self, value: ir.Value, unit: float, dims: Dims) -> ir.Value:
        """Quantize floats to bytes around ``middle``, rounding halves to even numbers."""
        inputs = [value, self.scalar(f"step.{unit:g}", unit), self.zero_point]
        return self.op("QuantizeLinear", inputs, dims, helper="signed", dtype=self.spike)

    @property
    def zero_point(self) -> ir.Value:
        """Return the constant ``middle``."""
        return self.small("zero_point", np.array(self.middle, self.target.spike.numpy()))

    def times(self, value: ir.Value, number: float, dims: Dims) -> ir.Value:
        """Emit a product of a float value and a number, once for each pair."""
        key = (value, "times", number)
        if key not in self.cache:
            factor = self.scalar(f"factor.{number:g}", number)
            self.cache[key] = self.op("Mul", [value, factor], dims, helper="unit")
        return self.cache[key]

    def cast(self, value: ir.Value, dtype: ir.TensorType, dims: Dims) -> ir.Value:
        """Emit a cast, once for each value and type."""
        key = (value, "cast", dtype.dtype)
        if key not in self.cache:
            attributes = {"to": dtype.dtype.value}
            self.cache[key] = self.op("Cast", [value], dims, attributes, helper="cast", dtype=dtype)
        return self.cache[key]

    def fits(self, grid: IntegerRange | None) -> bool:
        """Return whether all numbers of a value fit the target's spike type."""
        return grid is not None and grid.low >= 0 and grid.high <= self.target.spike_max

    def stored_as(self, largest: int) -> ir.TensorType:
        """Return the element type in which spike counts up to ``largest`` are stored."""
        return self.spike if largest <= self.target.spike_max else FLOAT

    def channels_last(self, node: fx.Node, result: Steps) -> Steps:
        """Rearrange the result of a convolution or pool from ``[b, c, y, x]`` to ``[b * y * x, c]``.

        ONNX Runtime merges this transposition into the operator before it. Because the rows are merged, it cannot move
        the transposition further, through a neuron and into a pool, which would then run channels first and take
        fifteen times as long.
        """
        if len(result.dims) < 3 or all(isinstance(self.program.module_of(u), nn.MaxPool2d) for u in node.users):
            return result
        dims = (tuple(token for i, dim in enumerate(result.dims) if i != 1 for token in dim), result.dims[1])
        stored = replace(result, unit=1.0)
        values = self.per_step(len(result.values), lambda t: self.read_step(stored, t, dims, result.dtype))
        return replace(result, values=values, dims=dims)

    def run_layer_by_layer(self, result: Steps) -> Steps:
        """Make the spikes of every step depend on those of the last step, so that a neuron's steps run together.

        ONNX Runtime orders nodes depth first. Without this dependency it would run all layers for the first step, then
        all layers for the second, and so on, and keep the membranes of the entire network in between. With it, a
        layer's membranes are freed before the next layer starts. It costs two nodes a step that copy no data: the
        Shape of the later step's spikes, which a dynamic batch leaves unknown until they are computed, and a Reshape
        to that shape, which the earlier step's spikes have already.
        """
        values = list(result.values)
        for t in reversed(range(len(values) - 1)):
            shape = self.op("Shape", [values[t + 1]], (), helper="later", dtype=I64)
            shape.shape = ir.Shape([len(result.dims)])
            values[t] = self.op("Reshape", [values[t], shape], result.dims, helper="in_turn", dtype=result.dtype)
        return replace(result, values=tuple(values))

    def per_step(self, count: int, emit: Callable[[int], ir.Value]) -> tuple[ir.Value, ...]:
        """Return the value that ``emit`` gives for each of the first ``count`` steps."""
        return tuple(emit(t) for t in range(count))

    # weights

    def small(self, path: str, values: np.ndarray) -> ir.Value:
        """Return a constant in its own element type; there is one for each path and type."""
        key = ("small", path, values.dtype.str)
        if key not in self.cache:
            self.cache[key] = self.initializer(path, values)
        return self.cache[key]

    def packed(self, path: str, weights: np.ndarray) -> ir.Value:
        """Return int8 weights that are stored in as few bits as possible and widened when the file is loaded.

        ONNX packs two INT4 or four INT2 numbers into a byte. Two bits hold the odd numbers from -3 to 3, as
        (w - 1) / 2.
        """
        bits = max(stored_bits(torch.from_numpy(np.ascontiguousarray(weights))), self.target.narrowest)
        if bits == 8:
            return self.small(path, weights)
        key = ("packed", path)
        if key not in self.cache:
            kind = ir.DataType.INT4 if bits == 4 else ir.DataType.INT2
            numbers = weights if bits == 4 else (weights - 1) // 2
            stored = self.initializer(path, numbers.astype(kind.numpy()))
            if bits == 2:
                wide = self.cast(stored, FLOAT, ())
                wide.shape = ir.Shape(weights.shape)
                double = self._folded("Mul", wide, self.scalar("factor.2", 2), weights.shape)
                stored = self._folded("Add", double, self.scalar("odd", 1), weights.shape)
            value = self.cast(stored, ir.TensorType(ir.DataType.INT8), ())
            value.shape = ir.Shape(weights.shape)
            self.cache[key] = value
        return self.cache[key]

    def widened(self, path: str, weights: np.ndarray, scale: np.ndarray | None, gain: float) -> ir.Value:
        """Return int8 weights as floats, times a scale and a gain; the products are folded when the file is loaded.

        Args:
            path: name of the weights in the file.
            weights: int8 array.
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

    def rescaled(self, path: str, sums: ir.Value, layer: nn.Module, unit: float, gain: float, dims: Dims) -> ir.Value:
        """Emit ``(sums * unit * scale + bias) * gain``; the scale is stored as uint16 where that loses no bit.

        Args:
            path: path of the layer.
            sums: result of the layer's matrix product.
            layer: quantized layer with one scale and one bias for each channel.
            unit: what a sum of 1 stands for, before the scale.
            gain: factor of the time step.
            dims: layout of the result.
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
        product = self.scaled(sums, unit * gain * column_unit, dims, column)
        return self.op("Add", [product, self.gained(f"{path}.bias", bias, gain)], dims, helper="add_bias")

    def scaled(self, sums: ir.Value, number: float, dims: Dims, column: ir.Value | None = None) -> ir.Value:
        """Emit a matrix product's result times a number, and times one constant for each column.

        On the CPU the factor is written as a product with something that ONNX Runtime does not fold. ONNX Runtime then
        replaces the integer product, the cast, this product and the addition of a bias by one of its own operators,
        which writes floats directly (0.3 instead of 0.7 ms for 784 x 384 x 384). Other targets have no such operator.
        """
        floats = sums if sums.type == FLOAT else self.cast(sums, FLOAT, dims)
        factor = self.scalar(f"factor.{number:g}", number)
        if self.target.hides_scales and sums.type != FLOAT:
            factor = self._unfolded(number)
            column = self.scalar("factor.1", 1) if column is None else column
        if column is not None:
            factor = self._folded("Mul", factor, column, tuple(column.shape or ()))  # type: ignore[arg-type]
        return self.op("Mul", [floats, factor], dims, helper="rescale")

    def _unfolded(self, number: float) -> ir.Value:
        """Return a number that ONNX Runtime computes in every run, since it does not fold DequantizeLinear."""
        if "half" not in self.cache:
            half = [self.small("one", np.array(1, np.uint8)), self.scalar("half", 0.5)]
            self.cache["half"] = self.op("DequantizeLinear", half, (), helper="half")
        key = ("unfolded", number)
        if key not in self.cache:
            self.cache[key] = self._folded(
                "Mul", self.cache["half"], self.scalar(f"factor.{2 * number:g}", 2 * number), ()
            )
        return self.cache[key]


__all__ = ["BOOL", "I32", "Steps", "UnrolledBuilder", "timeless"]
