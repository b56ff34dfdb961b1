"""The graph of a quantized program under construction: unrolled over time, channels last, small element types.

A value of the program is one ONNX value for each time step, so that nothing must be split or joined, one step's numbers
stay in the processor's cache, and a current can carry a factor of its own at each step. Its rows are pixels or tokens,
its columns channels, as matrix products read and write them. View operations change only how a value is seen
(layout.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from torch import fx, nn

from svitc.analysis.integer_range import ZERO_BYTE, IntegerRange, integer_ranges
from svitc.errors import InternalError
from svitc.ir.axes import Axis, Dim, Dims, Kind, size
from svitc.ir.graph import attribute_of
from svitc.ir.program import Program
from svitc.onnx import layout
from svitc.onnx.builder import FLOAT, Stored, as_array
from svitc.onnx.target import CPU, Target
from svitc.onnx.unrolled.step_gain import factor
from svitc.onnx.unrolled.steps import Steps, leading_time
from svitc.onnx.unrolled.weights import WeightBuilder

I32, I64, BOOL = (ir.TensorType(t) for t in (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL))


class UnrolledBuilder(WeightBuilder):
    """Emits the nodes of a quantized program; the rules (rules.py) call it.

    Attributes:
        grids: integer ranges of the program's values.
        at_node: the stored value of each lowered node.
        gains: gains of the nodes that are emitted at another scale (step_gain.py).
        spike: element type of stored spikes, and of other values that fit it.
        middle: the byte that stands for 0 in operands with negative numbers.
    """

    def __init__(self, program: Program, target: Target = CPU, streaming: bool = False) -> None:
        super().__init__(program, target, streaming)
        self.spike = ir.TensorType(target.spike)
        self.middle = 0 if target.spike == ir.DataType.INT8 else ZERO_BYTE
        self.grids: dict[fx.Node, IntegerRange] = integer_ranges(program)
        self.at_node: dict[fx.Node, Steps] = {}
        self.gains: dict[fx.Node, int] = {}
        self._emitted: set[str] = set()  # layers whose main node exists

    def _main_name(self) -> str:
        """Return the layer's path, and for its further steps the path with a number."""
        first = self.name not in self._emitted
        self._emitted.add(self.name)
        return self.name if first else self._node_names(f"{self.name}.t1" if self.name else "step")

    def of(self, node: object, dim: int | None = None) -> Steps:
        """Return the stored value of a node as one value for each time step.

        Args:
            node: argument of another node.
            dim: the dimension whose outermost axes are the steps; by default the first that begins with time.

        Raises:
            InternalError: the argument is not a tensor that was lowered.
        """
        if not isinstance(node, fx.Node) or (node not in self.at_node and node not in self.stored):
            raise InternalError(f"{self.name} reads {node!r}, which is not a tensor that was lowered")
        wanted = leading_time(self.program.type_of(node))
        if dim is not None and wanted is not None and wanted[0] != dim:
            wanted = None
        steps = self.at_node.get(node)
        view = steps.view if steps is not None else self.stored[node].view
        time = view[wanted[0]][: wanted[1]] if wanted is not None else ()
        if steps is not None and (steps.time == time or steps.parameter):
            return steps
        key = ("steps", node, time)
        if key not in self.cache:
            self.cache[key] = self._split(self.at(node), time)
        return self.cache[key]

    def at(self, node: object) -> Stored:
        """Return the stored value of a node as one value for all time steps, in float32 (whole.py)."""
        if isinstance(node, fx.Node) and node in self.at_node and node not in self.stored:
            self.stored[node] = self._joined(self.at_node[node])
        return super().at(node)

    def _joined(self, steps: Steps) -> Stored:
        """Concatenate the steps of a value along its first dimension."""
        if steps.parameter:
            return Stored(None, steps.view, steps.view, steps.parameter)
        plain = replace(steps, gain=0)
        dims = steps.dims or ((),)
        values = [self.read_step(plain, t, dims) for t in range(len(steps.values))]
        if steps.gain:
            values = [self.times(value, 1 / factor(steps.gain, t), dims) for t, value in enumerate(values)]
        if steps.static:  # without time, or the same at every step
            return Stored(values[0], dims, steps.view)
        dims = ((*steps.time, *dims[0]), *dims[1:])
        return Stored(self.op("Concat", values, dims, {"axis": 0}, helper="all_steps"), dims, steps.view)

    def _split(self, stored: Stored, time: Dim) -> Steps:
        """Split a value into its steps.

        Args:
            stored: the value of all steps.
            time: tokens of the steps. What else is time belongs to each step's value, and is seen as pixels there.
        """
        if stored.value is None:
            return self.parameter_steps(stored.parameter, stored.dims, stored.view)
        repeated = stored.constant_along
        other = {
            token: Axis(token.name, token.size, Kind.PIXEL, token.letter)
            for token in layout.flat(stored.view)
            if token.kind == Kind.TIME and token not in time
        }

        def renamed(dims: Dims) -> Dims:
            return tuple(tuple(other.get(token, token) for token in dim) for dim in dims)

        if repeated and set(repeated) != set(time):  # repeated along something else, too
            value = self.read(stored, stored.view)
            stored, repeated = Stored(value, stored.view, stored.view), ()
        if repeated or not time:
            assert stored.value is not None
            return Steps((stored.value,), renamed(stored.dims), renamed(stored.view), time_order=time)
        rest = tuple(dim for dim in layout.without(stored.dims, time) if dim) or ((),)
        whole = self.read(stored, ((*time, *rest[0]), *rest[1:]))
        count = size(time)
        values = self.ops("Split", [whole], [rest] * count, {"axis": 0, "num_outputs": count}, helper="steps")
        return Steps(tuple(values), renamed(rest), renamed(stored.view), time_order=time)

    def parameter_steps(self, path: str, dims: Dims, view: Dims) -> Steps:
        """Return a parameter, perhaps with a value for each step; it is written where it is read."""
        return Steps((ir.Value(name=f"{path}.parameter"),) * self.steps_of(view), dims, view, parameter=path)

    def fresh_view(self, node: fx.Node) -> Dims:
        """Return new tokens for a node's value."""
        return layout.fresh(self.program.type_of(node))

    def steps_of(self, view: Dims) -> int:
        """Return the number of time steps of a value."""
        return size(token for dim in view for token in dim if token.kind == Kind.TIME)

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
            return self._parameter_step(source, t, dims)
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
        if len(result.dims) < 3 or not result.dims[0]:  # channels are not second
            return result
        if all(isinstance(self.program.module_of(u), nn.MaxPool2d) for u in node.users):
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

        Of two inputs, ONNX Runtime first computes the one whose node is later in the file. So the node of a step's
        spikes comes after the Shape: steps are computed from the first to the last, each one's spikes while its
        membrane is still in the processor's cache.
        """
        values = list(result.values)
        for t in reversed(range(len(values) - 1)):
            shape = self.op("Shape", [values[t + 1]], (), helper="later", dtype=I64)
            shape.shape = ir.Shape([len(result.dims)])
            self._put_last(values[t])
            values[t] = self.op("Reshape", [values[t], shape], result.dims, helper="in_turn", dtype=result.dtype)
        return replace(result, values=tuple(values))

    def _put_last(self, value: ir.Value) -> None:
        """Move the node that gives a value to the end, unless it gives others as well, which nodes may have read."""
        node = value.producer()
        if node is not None and len(node.outputs) == 1:
            place = next(i for i in reversed(range(len(self.nodes))) if self.nodes[i] is node)
            self.nodes.append(self.nodes.pop(place))

    def per_step(self, count: int, emit: Callable[[int], ir.Value]) -> tuple[ir.Value, ...]:
        """Return the value that ``emit`` gives for each of the first ``count`` steps."""
        return tuple(emit(t) for t in range(count))

    def _parameter_step(self, source: Steps, t: int, dims: Dims) -> ir.Value:
        """Return a parameter, or one step of a parameter with a number for each step."""
        if not source.time:
            return self._parameter(Stored(None, source.dims, source.view, source.parameter), dims)
        key = (source.parameter, t, dims)
        if key not in self.cache:
            values = as_array(attribute_of(self.program.module, source.parameter))
            of_step = layout.moved(values, source.dims, (source.time, *dims))[t]
            self.cache[key] = self.initializer(source.parameter, of_step)
        return self.cache[key]


__all__ = ["BOOL", "I32", "UnrolledBuilder"]
