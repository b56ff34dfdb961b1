"""Rules that lower a quantized program, one for each operation: what it emits for each time step."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch
from torch import fx, nn

from svitc.analysis.integer_range import runs_in_floats
from svitc.errors import InternalError, UnsupportedError
from svitc.ir import axes, ops
from svitc.ir.axes import Dim, Dims, Kind, size
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.operators import slicing
from svitc.onnx import layout
from svitc.onnx.broadcast import common_layout
from svitc.onnx.builder import FLOAT, Attributes, Stored
from svitc.onnx.float_rules import LoweringRule, norm_weights, pair_of, runs, window
from svitc.onnx.neuron_functions import kind_of
from svitc.onnx.running import reduced_so_far
from svitc.onnx.stateless_functions import stateless_kind_of
from svitc.onnx.states import batch_first, note
from svitc.onnx.unrolled import token_rows
from svitc.onnx.unrolled.builder import BOOL, I32, UnrolledBuilder
from svitc.onnx.unrolled.matmuls import Projection, dense, in_floats, matrix_product
from svitc.onnx.unrolled.neuron_functions import UnrolledKind
from svitc.onnx.unrolled.parts import block, part
from svitc.onnx.unrolled.step_gain import StepScale, factor
from svitc.onnx.unrolled.steps import Steps, timeless

Rule = LoweringRule[UnrolledBuilder, Steps]


# layers


def projection(b: UnrolledBuilder, node: fx.Node, module: Projection) -> Steps:
    """Lower a convolution or linear layer, quantized or not."""
    grid = b.grids.get(node.all_input_nodes[0])
    if ops.is_quantized(module) and not runs_in_floats(module, grid):
        return dense(b, node, module)
    return in_floats(b, node, module)


def fixed_point(b: UnrolledBuilder, node: fx.Node, module: ops.FixedPoint) -> Steps:
    """Lower the rounding of a real input; the results are stored as bytes if they fit."""
    x = b.of(node.args[0])
    fits_byte = module.limit <= 127

    def emit(t: int) -> ir.Value:
        value = b.read_step(x, t, x.dims)
        if fits_byte:
            ends = [
                b.scalar(f"limit.{end:g}", end) for end in (-module.limit * module.step, module.limit * module.step)
            ]
            return b.signed(b.op("Clip", [value, *ends], x.dims, helper="limits"), module.step, x.dims)
        scaled = b.op("Mul", [value, b.scalar("steps", 1 / module.step)], x.dims, helper="steps")
        limits = [b.scalar("lowest", -module.limit), b.scalar("highest", module.limit)]
        return b.op("Clip", [b.op("Round", [scaled], x.dims, helper="round"), *limits], x.dims)

    values = b.per_step(len(x.values), emit)
    return Steps(values, x.dims, x.view, b.spike, offset=b.middle) if fits_byte else Steps(values, x.dims, x.view)


def batch_norm(b: UnrolledBuilder, node: fx.Node, module: nn.BatchNorm1d | nn.BatchNorm2d) -> Steps:
    """Lower a batch norm in evaluation mode."""
    weights = norm_weights(b, node, module)
    return _channels_first(b, node, "BatchNormalization", weights, {"epsilon": float(module.eps)})


def max_pool(b: UnrolledBuilder, node: fx.Node, module: nn.MaxPool2d) -> Steps:
    """Lower a max pooling layer; it changes the sign of its result if its gain is -1."""
    attributes: dict[str, int | list[int]] = {**window(module)}
    if module.ceil_mode:
        attributes["ceil_mode"] = 1
    if pair_of(module.dilation) != [1, 1]:
        attributes["dilations"] = pair_of(module.dilation)
    result = _channels_first(b, node, "MaxPool", (), attributes, keep=True)
    if result.gain <= 0 or b.gains.get(node, 0) >= 0:
        return result
    values = b.per_step(len(result.values), lambda t: b.op("Neg", [result.values[t]], result.dims, helper="negative"))
    return replace(result, values=values, gain=-1)


def average_pool(b: UnrolledBuilder, node: fx.Node, module: nn.AvgPool2d) -> Steps:
    """Lower an average pooling layer."""
    if module.divisor_override is not None or module.ceil_mode:
        raise UnsupportedError(
            f"{node.target}: average pooling with ceil_mode or a divisor of its own (divisor_override) has no lowering"
        )
    attributes: dict[str, int | list[int]] = {**window(module)}
    if module.count_include_pad:
        attributes["count_include_pad"] = 1
    return _channels_first(b, node, "AveragePool", (), attributes)


def zero_pad(b: UnrolledBuilder, node: fx.Node, module: nn.ZeroPad2d) -> Steps:
    """Lower zero padding of rows and columns."""
    left, right, top, bottom = module.padding
    rest = [0] * (len(timeless(b.of(node.args[0]).view)) - 2)  # time has size 1 there where it is apart from the batch
    pads = b.integers("pads", [*rest, top, left, *rest, bottom, right])
    return _channels_first(b, node, "Pad", [pads], None, keep=b.target.pads_spikes)


def stateless_neuron(b: UnrolledBuilder, node: fx.Node, module: nn.Module) -> Steps:
    """Lower a neuron without a membrane to a call of its kind's function for each step."""
    x = b.of(node.args[0])
    kind, dtype = stateless_kind_of(module), b.stored_as(dynamics_of(module).max_spikes)
    scalars = [b.scalar(f"{kind.name.lower()}.{name}", number) for name, number in kind.constants.items()]

    def emit(t: int) -> ir.Value:
        (fired,) = b.neuron(kind, [b.read_step(x, t, x.dims), *scalars], [x.dims], x.dims)
        return fired if dtype == FLOAT else b.cast(fired, dtype, x.dims)

    # a call for each step even of a static image, as verification feeds each step with spikes of its own
    return Steps(b.per_step(b.steps_of(x.view), emit), x.dims, x.view, dtype, time_order=x.time_order)


def spiking_neuron(b: UnrolledBuilder, node: fx.Node, module: nn.Module) -> Steps:
    """Lower a neuron with a membrane to one call of its kind's function, which has one output for each step."""
    x = b.of(node.args[0], dim=0)
    path = str(node.target)
    inner = kind_of(path, module, size(x.view[0]), x.static, b.streaming)
    dims = tuple(dim for dim in x.dims if dim)  # ONNX Runtime does not vectorize comparisons of [n, 1] with a scalar
    dtype = b.stored_as(inner.count)
    kind = UnrolledKind(inner, dtype.dtype, x.gain)
    count = 1 if inner.static else inner.steps
    inputs = [b.read_step(x, t, dims) for t in range(count)]
    initial = -dynamics_of(module).initial if kind.negated else dynamics_of(module).initial
    state = b.state(path, dims, initial) if kind.carried else None
    if state is not None:
        inputs.append(b.read(b.store(state.before, state.dims), dims))
    if kind.takes_decay:
        inputs.append(b.weight(f"{node.target}.decay", dynamics_of(module).float32_rate))
    inputs += [b.scalar(f"{inner.name.lower()}.{name}.{number:g}", number) for name, number in kind.constants.items()]
    values = b.neuron(kind, inputs, [dims] * (inner.steps + inner.carried), dims, dtype)
    if state is not None:
        b.pass_on(state, values.pop(), dims)
        note(values[0].producer(), state, x.view, kind.negated)
    return Steps(tuple(values), dims, x.view, dtype)


def running(b: UnrolledBuilder, node: fx.Node, module: ops.RunningReduction) -> Steps:
    """Lower a reduction over the time steps so far."""
    x = b.of(node.args[0])
    dims = batch_first(x.dims)
    return Steps((reduced_so_far(b, str(node.target), module.kind, b.read_step(x, 0, dims), dims),), dims, x.view)


# functions


def rearrange(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    """Lower a view, which emits nothing: the readers rearrange the stored values as they need them."""
    x = b.at_node[node.all_input_nodes[0]]  # as it is stored: its readers are judged by their types
    dims = b.program.type_of(node)
    view = layout.rearranged(x.view, str(node.args[1]), node.kwargs, dims)  # type: ignore[arg-type]
    time = x.time or tuple(token for token in layout.flat(view) if token.kind == Kind.TIME)  # of a repeated image
    return replace(x, view=view, time_order=time)


def elementwise(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    """Lower a sum, difference or product of two tensors, or a product or quotient of a tensor and a number.

    Spikes and counts of them are added and multiplied as they are stored, if the target can; products of binary spikes
    are logical; everything else is computed in floats.
    """
    left, right = node.args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return _times(b, node)
    pair = (b.of(left), b.of(right))
    dims, operand_dims, view = _common_layout(*pair)
    full_view = _with_time(view, pair)
    count = max(len(s.values) for s in pair)
    op_type = {operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul"}[node.target]  # type: ignore[index]
    ranges = [b.grids.get(value) for value in (left, right, node)]
    if b.target.adds_spikes and node.target is not operator.sub and all(b.fits(r) for r in ranges):

        def emit_bytes(t: int) -> ir.Value:
            operands = zip(pair, operand_dims, ranges[:2], strict=True)
            inputs = [b.read_step(s, t, d, b.spike, r.unit) for s, d, r in operands]  # type: ignore[union-attr]
            return b.op(op_type, inputs, dims, dtype=b.spike)

        return Steps(b.per_step(count, emit_bytes), dims, full_view, b.spike, ranges[2].unit)  # type: ignore[union-attr]
    binary = all(r is not None and r.low == 0 and r.high == 1 and r.unit == 1 for r in ranges[:2])
    if node.target is operator.mul and binary:

        def emit_and(t: int) -> ir.Value:
            bits = [b.read_step(s, t, d, BOOL) for s, d in zip(pair, operand_dims, strict=True)]
            return b.cast(b.op("And", bits, dims, dtype=BOOL), b.spike, dims)

        return Steps(b.per_step(count, emit_and), dims, full_view, b.spike)

    def emit(t: int) -> ir.Value:
        return b.op(op_type, [b.read_step(s, t, d) for s, d in zip(pair, operand_dims, strict=True)], dims)

    gains = {s.gain for s in pair}
    if len(gains) > 1 or (op_type == "Mul" and gains != {0}):
        raise InternalError(f"{b.name}: its inputs have different gains")
    return Steps(b.per_step(count, emit), dims, full_view, gain=gains.pop())


def _times(b: UnrolledBuilder, node: fx.Node) -> Steps:
    """Lower a tensor multiplied or divided by a number.

    The unit of stored integers and the gains before and after go into the same product.
    """
    left, right = node.args
    x = b.of(left if isinstance(left, fx.Node) else right)
    number: Any = left if isinstance(right, fx.Node) else right
    multiplier = 1 / number if node.target is operator.truediv else number
    gain = b.gains.get(node, 0)
    stored = replace(x, unit=1.0, gain=0)

    def emit(t: int) -> ir.Value:
        total = multiplier * x.unit * factor(gain, t) / factor(x.gain, t)
        if x.dtype == I32 and total != 1:
            repetition = StepScale.at(gain, t).repetition
            return b.scaled(x.values[0 if x.static else t], total, x.dims, repetition=repetition)
        value = b.read_step(stored, t, x.dims)
        return value if total == 1 else b.op("Mul", [value, b.scalar(f"factor.{total:g}", total)], x.dims)

    count = b.steps_of(x.view) if gain or x.gain else len(x.values)
    return Steps(b.per_step(count, emit), x.dims, x.view, gain=gain, time_order=x.time_order)


def matmul(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    """Lower a matrix product of two activations."""
    return matrix_product(b, node)


def reduction(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    """Lower a mean or sum over dimensions: first over the time steps, then within each step."""
    x = b.of(node.args[0])
    reduced, keep = set(node.kwargs["dim"]), bool(node.kwargs["keepdim"])  # type: ignore[arg-type]
    tokens = [token for i, dim in enumerate(x.view) if i in reduced for token in dim]
    view = tuple(() if i in reduced else dim for i, dim in enumerate(x.view) if keep or i not in reduced)
    over_time = any(token.kind == Kind.TIME for token in tokens)
    steps = b.steps_of(x.view)
    tokens = [token for token in tokens if token.kind != Kind.TIME]
    mean = node.target is torch.mean
    values, dims = [b.read_step(x, t, x.dims) for t in range(len(x.values))], x.dims
    if over_time and not x.static:
        values = [b.op("Sum", values, dims, helper="over_time")]
        if mean:
            values = [b.op("Mul", [values[0], b.scalar("share", 1 / steps)], dims, helper="over_time")]
    elif over_time and not mean:
        values = [b.op("Mul", [values[0], b.scalar("steps", float(steps))], dims, helper="over_time")]
    if tokens:
        source = Steps(tuple(values), dims, x.view)
        split = tuple(run for dim in dims for run in runs(dim, tuple(tokens)))
        reduced_axes = [i for i, dim in enumerate(split) if dim and dim[0] in tokens]
        dims = tuple(() if i in reduced_axes else dim for i, dim in enumerate(split))
        inputs = [[b.read_step(source, t, split), b.integers("axes", reduced_axes)] for t in range(len(values))]
        values = [b.op("ReduceMean" if mean else "ReduceSum", operands, dims) for operands in inputs]
    return Steps(tuple(values), dims, view)


def attribute(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    """Lower a parameter that the program reads directly; it is written in the layout in which it is read."""
    view = b.fresh_view(node)
    return b.parameter_steps(str(node.target), view, view)


# shared by rules


def _channels_first(
    b: UnrolledBuilder,
    node: fx.Node,
    op_type: str,
    weights: Sequence[ir.Value],
    attributes: Attributes | None,
    keep: bool = False,
) -> Steps:
    """Emit one node a step that reads and writes ``[b, c, y, x]``.

    Args:
        b: builder that the nodes are emitted to.
        node: the layer.
        op_type: the ONNX operator.
        weights: its inputs after the first.
        attributes: its attributes.
        keep: whether the operator accepts bytes, so that bytes need not be widened.
    """
    x = b.of(node.args[0])
    view = b.fresh_view(node)
    dtype = x.dtype if keep and x.dtype in (b.spike, FLOAT) and not x.offset else FLOAT
    dims, source = timeless(view), timeless(x.view)
    values = b.per_step(
        len(x.values),
        lambda t: b.op(op_type, [b.read_step(x, t, source, dtype), *weights], dims, attributes, dtype=dtype),
    )
    unit = x.unit if dtype == b.spike else 1.0
    return b.channels_last(node, Steps(values, dims, view, dtype, unit, x.gain))


def _common_layout(left: Steps, right: Steps) -> tuple[Dims, tuple[Dims, Dims], Dims]:
    """Choose the layout in which an elementwise operation is computed.

    For values of equal shape it is channels last, which every projection reads and writes.

    Returns:
        the layout of the result, the layouts in which the two operands are read, and the result's view of one step.
    """
    a, b = left.timeless, right.timeless
    if axes.shape(a) != axes.shape(b) or left.parameter or right.parameter:
        return common_layout(_stored(left), _stored(right))
    view = layout.fresh(a)
    return rows_of(view), (rows_of(a), rows_of(b)), view


def rows_of(view: Dims) -> Dims:
    """Return the layout with pixels or tokens as rows and channels as columns."""
    flat = layout.flat(view)
    parts = [tuple(token for token in flat if (token.kind == Kind.CHANNEL) == channel) for channel in (False, True)]
    return tuple(dim for dim in parts if dim)


def _stored(s: Steps) -> Stored:
    """Return one step of a value in the form that the float lowering uses."""
    return Stored(None if s.parameter else s.values[0], s.dims, s.timeless, s.parameter)


def _with_time(view: Dims, pair: Sequence[Steps]) -> Dims:
    """Return a view of one step with the time tokens of its operands added."""
    out = []
    for i, dim in enumerate(view):
        time: Dim = ()
        for s in pair:
            j = i - (len(view) - len(s.view))
            if j >= 0 and not time:
                time = tuple(token for token in s.view[j] if token.kind == Kind.TIME)
        out.append((*time, *dim))
    return tuple(out)


MODULE_RULES: dict[type, Rule] = {
    **dict.fromkeys(ops.CONVOLUTIONS, projection),
    nn.Linear: projection,
    **dict.fromkeys(ops.BATCH_NORMS, batch_norm),
    nn.MaxPool2d: max_pool,
    nn.AvgPool2d: average_pool,
    nn.ZeroPad2d: zero_pad,
    **dict.fromkeys(ops.STATEFUL_NEURONS, spiking_neuron),
    **dict.fromkeys(ops.STATELESS_NEURONS, stateless_neuron),
    ops.FixedPoint: fixed_point,
    ops.RunningReduction: running,
}
FUNCTION_RULES: dict[Any, Rule] = {
    **dict.fromkeys(ops.VIEWS, rearrange),
    **dict.fromkeys(ops.ELEMENTWISE, elementwise),
    torch.matmul: matmul,
    **dict.fromkeys(ops.REDUCTIONS, reduction),
    ops.take_block: block,
    ops.take_range: part,
    slicing.select_indices: token_rows.select_indices,
    slicing.concatenate: token_rows.concatenate,
}
__all__ = ["FUNCTION_RULES", "MODULE_RULES", "attribute"]
