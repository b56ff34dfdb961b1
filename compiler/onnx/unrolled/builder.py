"""The graph of a quantized program under construction: every time step apart, channels last, small types.

A value is one ONNX value for each time step, so that nothing has to be split or joined, a step's numbers stay in the
processor's cache, and a current can carry its step's own factor. Its rows are pixels or tokens, its columns channels:
what a matrix product reads and writes. Views change only how a value is seen (layout.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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
    """A value of the program, as it lies in the ONNX graph.

    Attributes:
        values: one for each time step; a single one that serves for all (a static image), or that has no time.
        dims: how each lies.
        view: the dimensions that the program gives it, time among them, in the same tokens.
        dtype: of the elements; whole numbers are stored as the target's spikes are, or as int32.
        unit: what a stored number stands for.
        gain: other than 0, step t holds ``factor(gain, t)`` times the value (step_gain.py).
        offset: what is added to the stored numbers, so that bytes without a sign hold negative ones.
        parameter: path of the parameter that this is, which no node computes.
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
        return timeless(self.view)

    @property
    def static(self) -> bool:
        return len(self.values) == 1


def timeless(view: Dims) -> Dims:
    """A view as one step sees it."""
    return tuple(tuple(token for token in dim if token.kind != Kind.TIME) for dim in view)


class UnrolledBuilder(Builder):
    """Emits the nodes of a quantized program; rules (rules.py) call it.

    Attributes:
        grids: of the program's values.
        steps: number of time steps.
        at_node: what was lowered.
        spike: type of stored spikes, and of what else fits it.
    """

    def __init__(self, program: Program, target: Target = CPU) -> None:
        super().__init__(program, target)
        self.spike = ir.TensorType(target.spike)
        self.middle = 0 if target.spike == ir.DataType.INT8 else 128  # the byte that stands for 0 where there are signs
        self.grids: dict[fx.Node, IntegerRange] = integer_ranges(program)
        self.at_node: dict[fx.Node, Steps] = {}
        self.gains: dict[fx.Node, int] = {}
        self._worked: set[str] = set()
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
        """The layer's path, and for further steps the same with a number."""
        first = self.name not in self._worked
        self._worked.add(self.name)
        return self.name if first else self._node_names(f"{self.name}.t1" if self.name else "step")

    def of(self, node: Any) -> Steps:
        if not isinstance(node, fx.Node) or node not in self.at_node:
            raise InternalError(f"{self.name} reads {node!r}, which is not a tensor that was lowered")
        return self.at_node[node]

    def fresh_view(self, node: fx.Node) -> Dims:
        """Tokens for a value; time must be the outermost part of its dimension."""
        view = layout.fresh(self.program.type_of(node))
        for dim in view:
            kinds = [token.kind for token in dim]
            if Kind.TIME in kinds[1:]:
                raise UnsupportedError(f"{self.name}: time within {axes.show(view)} has no integer lowering")
        return view

    def read_step(self, source: Steps, t: int, dims: Dims, dtype: ir.TensorType = FLOAT, unit: float = 1.0) -> ir.Value:
        """A step's value in a layout and type; floats are the numbers themselves, integers count ``unit``."""
        if source.parameter:
            return self._parameter(Stored(None, source.dims, source.view, source.parameter), dims)
        value = source.values[0 if source.static else t]
        small_first = source.dtype in (self.spike, BOOL)  # bytes are moved before they are widened
        if not small_first:
            if source.dtype == FLOAT and dtype != FLOAT and unit != 1:
                value = self.times(value, 1 / unit, source.dims)
            value = self._cast(value, source, dtype, source.dims)
        for step in layout.steps(source.dims, dims):
            key = (value, step.op, step.dims)
            if key not in self.cache:
                kind = source.dtype if small_first else dtype
                if step.op == "Reshape":
                    target = self.integers("shape", step.operand)
                    made = self.op("Reshape", [value, target], step.dims, helper="reshape", dtype=kind)
                else:
                    perm = {"perm": list(step.operand)}
                    made = self.op("Transpose", [value], step.dims, perm, helper="transpose", dtype=kind)
                self.cache[key] = made
            value = self.cache[key]
        return self._cast(value, source, dtype, dims) if small_first else value

    def _cast(self, value: ir.Value, source: Steps, dtype: ir.TensorType, dims: Dims) -> ir.Value:
        if source.dtype != dtype:
            value = self.cast(value, dtype, dims)
        if source.offset and dtype == FLOAT:
            value = self.op("Sub", [value, self.scalar("middle", source.offset)], dims, helper="signed")
        return self.times(value, source.unit, dims) if dtype == FLOAT and source.unit != 1 else value

    def operand(self, source: Steps, t: int, dims: Dims, grid: IntegerRange | None) -> ir.Value:
        """What a product reads: bytes, with ``middle`` for 0 where some are negative, or floats that count units."""
        if grid is not None and grid.is_signed_byte:
            if source.offset == self.middle and source.dtype == self.spike:
                return self.read_step(source, t, dims, self.spike)
            return self.signed(self.read_step(source, t, dims), grid.unit, dims)
        if grid is not None and self.fits(grid):
            return self.read_step(source, t, dims, self.spike, grid.unit)
        return self.read_step(source, t, dims)

    def nothing(self, grid: IntegerRange) -> int:
        """The byte that stands for 0 in an operand of this grid."""
        return self.middle if grid.is_signed_byte else 0

    def signed(self, value: ir.Value, unit: float, dims: Dims) -> ir.Value:
        """Floats as bytes around ``middle``: rounded, halves to even numbers."""
        inputs = [value, self.scalar(f"step.{unit:g}", unit), self.zero_point]
        return self.op("QuantizeLinear", inputs, dims, helper="signed", dtype=self.spike)

    @property
    def zero_point(self) -> ir.Value:
        return self.small("zero_point", np.array(self.middle, self.target.spike.numpy()))

    def times(self, value: ir.Value, number: float, dims: Dims) -> ir.Value:
        key = (value, "times", number)
        if key not in self.cache:
            factor = self.scalar(f"factor.{number:g}", number)
            self.cache[key] = self.op("Mul", [value, factor], dims, helper="unit")
        return self.cache[key]

    def cast(self, value: ir.Value, dtype: ir.TensorType, dims: Dims) -> ir.Value:
        key = (value, "cast", dtype.dtype)
        if key not in self.cache:
            attributes = {"to": dtype.dtype.value}
            self.cache[key] = self.op("Cast", [value], dims, attributes, helper="cast", dtype=dtype)
        return self.cache[key]

    def fits(self, grid: IntegerRange | None) -> bool:
        """Whether all numbers of a value can be stored as spikes are."""
        return grid is not None and grid.low >= 0 and grid.high <= self.target.most

    def stored_as(self, most: int) -> ir.TensorType:
        """What counts up to ``most`` are stored as."""
        return self.spike if most <= self.target.most else FLOAT

    def channels_last(self, node: fx.Node, found: Steps) -> Steps:
        """``[b, c, y, x]`` at once as ``[b * y * x, c]``; ONNX Runtime takes the move into the operator before it.

        The merged rows keep it from moving the transposition on, through a neuron, into a pool that then runs channels
        first, fifteen times slower.
        """
        if len(found.dims) < 3 or all(isinstance(self.program.module_of(u), nn.MaxPool2d) for u in node.users):
            return found
        dims = (tuple(token for i, dim in enumerate(found.dims) if i != 1 for token in dim), found.dims[1])
        values = self.each(len(found.values), lambda t: self.read_step(replace(found, unit=1.0), t, dims, found.dtype))
        return replace(found, values=values, dims=dims)

    def in_turn(self, found: Steps) -> Steps:
        """Spikes of which each step's can be read only after the last step's were computed: layer by layer.

        ONNX Runtime orders nodes depth first. Left free it runs all layers of the first step, then all of the next,
        and keeps every membrane of the network in between; in this order a layer's are gone before the next layer's
        come. What it costs is two nodes a step that touch no data: the shape, which a dynamic batch leaves open until
        the later step is there, of a value that has it already.
        """
        values = list(found.values)
        for t in reversed(range(len(values) - 1)):
            shape = self.op("Shape", [values[t + 1]], (), helper="later", dtype=I64)
            shape.shape = ir.Shape([len(found.dims)])
            values[t] = self.op("Reshape", [values[t], shape], found.dims, helper="in_turn", dtype=found.dtype)
        return replace(found, values=tuple(values))

    def each(self, count: int, make: Any) -> tuple[ir.Value, ...]:
        """One value for each step, or the one that serves for all."""
        return tuple(make(t) for t in range(count))

    # weights

    def small(self, path: str, values: np.ndarray) -> ir.Value:
        """A constant of the file in its own type; the same request is met once."""
        key = ("small", path, values.dtype.str)
        if key not in self.cache:
            self.cache[key] = self.initializer(path, values)
        return self.cache[key]

    def packed(self, path: str, whole: np.ndarray) -> ir.Value:
        """Int8 weights, stored in as few bits as hold them and widened when the file is loaded.

        ONNX packs INT4 two and INT2 four to a byte. Two bits hold the odd numbers from -3 to 3 as (w - 1) / 2.
        """
        bits = max(stored_bits(torch.from_numpy(np.ascontiguousarray(whole))), self.target.narrowest)
        if bits == 8:
            return self.small(path, whole)
        key = ("packed", path)
        if key not in self.cache:
            kind = ir.DataType.INT4 if bits == 4 else ir.DataType.INT2
            numbers = whole if bits == 4 else (whole - 1) // 2
            stored = self.initializer(path, numbers.astype(kind.numpy()))
            if bits == 2:
                wide = self.cast(stored, FLOAT, ())
                wide.shape = ir.Shape(whole.shape)
                double = self._folded("Mul", wide, self.scalar("factor.2", 2), whole.shape)
                stored = self._folded("Add", double, self.scalar("odd", 1), whole.shape)
            value = self.cast(stored, ir.TensorType(ir.DataType.INT8), ())
            value.shape = ir.Shape(whole.shape)
            self.cache[key] = value
        return self.cache[key]

    def widened(self, path: str, whole: np.ndarray, scale: np.ndarray | None, gain: float) -> ir.Value:
        """Int8 weights as floats, times their scale, broadcast, and a gain: folded when the file is loaded."""
        key = ("widened", path, scale is None, gain)
        if key not in self.cache:
            value = self.cast(self.small(path, whole), FLOAT, ())
            value.shape = ir.Shape(whole.shape)
            if scale is not None:
                column = self.small(f"{path.removesuffix('.weight')}.scale", scale)
                value = self._folded("Mul", value, column, whole.shape)
            if gain != 1:
                value = self._folded("Mul", value, self.scalar(f"factor.{gain:g}", gain), whole.shape)
            self.cache[key] = value
        return self.cache[key]

    def gained(self, path: str, values: np.ndarray, gain: float) -> ir.Value:
        """A constant times a gain, which is folded when the file is loaded."""
        value = self.small(path, values)
        if gain == 1:
            return value
        key = ("gained", path, gain)
        if key not in self.cache:
            self.cache[key] = self._folded("Mul", value, self.scalar(f"factor.{gain:g}", gain), values.shape)
        return self.cache[key]

    def _folded(self, op_type: str, left: ir.Value, right: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        value = self.op(op_type, [left, right], (), helper="constant")
        value.shape = ir.Shape(shape)
        return value

    def rescaled(self, path: str, sums: ir.Value, layer: Any, unit: float, gain: float, dims: Dims) -> ir.Value:
        """``(sums * unit * scale + bias) * gain``; the scale is stored as whole numbers where they are few bits."""
        scale = layer.scale.numpy()
        exponent = int(np.frexp(scale)[1].min()) - 8
        whole = np.ldexp(scale.astype(np.float64), -exponent)
        if whole.max() < 65536 and (whole == np.floor(whole)).all():
            column, by = self.cast(self.small(f"{path}.scale", whole.astype(np.uint16)), FLOAT, ()), 2.0**exponent
            column.shape = ir.Shape(scale.shape)
        else:  # scales too far apart for one exponent
            column, by = self.small(f"{path}.scale", scale), 1.0
        product = self.scaled(sums, unit * gain * by, dims, column)
        return self.op("Add", [product, self.gained(f"{path}.bias", layer.bias.numpy(), gain)], dims, helper="add_bias")

    def scaled(self, sums: ir.Value, number: float, dims: Dims, column: ir.Value | None = None) -> ir.Value:
        """A matrix product times a number, and times one constant for each column.

        Where these are written times something that ONNX Runtime does not fold, it takes the integer product, the cast,
        this product and the addition of a bias for one of its own operators, which writes floats at once (0.3 instead
        of 0.7 ms for 784 x 384 x 384). Other targets have no such operator.
        """
        found = sums if sums.type == FLOAT else self.cast(sums, FLOAT, dims)
        factor = self.scalar(f"factor.{number:g}", number)
        if self.target.hides_scales and sums.type != FLOAT:
            factor = self._unfolded(number)
            column = self.scalar("factor.1", 1) if column is None else column
        if column is not None:
            factor = self._folded("Mul", factor, column, tuple(column.shape or ()))  # type: ignore[arg-type]
        return self.op("Mul", [found, factor], dims, helper="rescale")

    def _unfolded(self, number: float) -> ir.Value:
        """A number that ONNX Runtime computes in every run, since it folds no DequantizeLinear."""
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
