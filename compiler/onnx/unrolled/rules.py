"""One rule for each operation of a quantized program: what it emits for each time step."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch
from torch import fx, nn

from svitc.analysis.integer_range import runs_in_floats
from svitc.errors import InternalError, UnsupportedError
from svitc.ir import axes, ops
from svitc.ir.axes import Dims, Kind, size
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.onnx import layout
from svitc.onnx.broadcast import common_layout
from svitc.onnx.builder import FLOAT, Stored
from svitc.onnx.float_rules import norm_weights, pair_of, runs, window
from svitc.onnx.neuron_functions import integer_kind_of, kind_of
from svitc.onnx.unrolled.builder import BOOL, I32, Steps, UnrolledBuilder, timeless
from svitc.onnx.unrolled.matmuls import dense, in_floats, matrix_product
from svitc.onnx.unrolled.neuron_functions import UnrolledKind
from svitc.onnx.unrolled.step_gain import factor

Rule = Callable[[UnrolledBuilder, fx.Node, Any], Steps]


# layers


def projection(b: UnrolledBuilder, node: fx.Node, module: Any) -> Steps:
    grid = b.grids.get(node.all_input_nodes[0])
    if ops.is_quantized(module) and not runs_in_floats(module, grid):
        return dense(b, node, module)
    return in_floats(b, node, module)


def fixed_point(b: UnrolledBuilder, node: fx.Node, module: ops.FixedPoint) -> Steps:
    """Numbers that fit a byte are stored as such."""
    x = b.of(node.args[0])
    small = module.limit <= 127

    def each(t: int) -> ir.Value:
        value = b.read_step(x, t, x.dims)
        if small:
            ends = [
                b.scalar(f"limit.{end:g}", end) for end in (-module.limit * module.step, module.limit * module.step)
            ]
            return b.signed(b.op("Clip", [value, *ends], x.dims, helper="limits"), module.step, x.dims)
        scaled = b.op("Mul", [value, b.scalar("steps", 1 / module.step)], x.dims, helper="steps")
        limits = [b.scalar("lowest", -module.limit), b.scalar("highest", module.limit)]
        return b.op("Clip", [b.op("Round", [scaled], x.dims, helper="round"), *limits], x.dims)

    values = b.each(len(x.values), each)
    return Steps(values, x.dims, x.view, b.spike, offset=b.middle) if small else Steps(values, x.dims, x.view)


def batch_norm(b: UnrolledBuilder, node: fx.Node, module: Any) -> Steps:
    weights = norm_weights(b, node, module)
    return _channels_first(b, node, "BatchNormalization", weights, {"epsilon": float(module.eps)})


def max_pool(b: UnrolledBuilder, node: fx.Node, module: nn.MaxPool2d) -> Steps:
    attributes = window(module) | ({"ceil_mode": 1} if module.ceil_mode else {})
    if pair_of(module.dilation) != [1, 1]:
        attributes["dilations"] = pair_of(module.dilation)
    found = _channels_first(b, node, "MaxPool", (), attributes, keep=True)
    if found.gain <= 0 or b.gains.get(node, 0) >= 0:
        return found
    turned = b.each(len(found.values), lambda t: b.op("Neg", [found.values[t]], found.dims, helper="negative"))
    return replace(found, values=turned, gain=-1)


def average_pool(b: UnrolledBuilder, node: fx.Node, module: nn.AvgPool2d) -> Steps:
    if module.divisor_override is not None or module.ceil_mode:
        raise UnsupportedError(f"{node.target}: average pooling with ceil_mode or a divisor of its own has no lowering")
    attributes = window(module) | ({"count_include_pad": 1} if module.count_include_pad else {})
    return _channels_first(b, node, "AveragePool", (), attributes)


def zero_pad(b: UnrolledBuilder, node: fx.Node, module: nn.ZeroPad2d) -> Steps:
    left, right, top, bottom = module.padding
    pads = b.integers("pads", [0, 0, top, left, 0, 0, bottom, right])
    return _channels_first(b, node, "Pad", [pads], None, keep=b.target.pads_spikes)


def integer_spike(b: UnrolledBuilder, node: fx.Node, module: ops.IntegerSpike) -> Steps:
    x = b.of(node.args[0])
    kind, dtype = integer_kind_of(module), b.stored_as(int(module.levels))
    scalars = [b.scalar(f"{kind.name.lower()}.{name}", number) for name, number in kind.constants.items()]

    def each(t: int) -> ir.Value:
        fired = b.call(kind, [b.read_step(x, t, x.dims), *scalars], x.dims)
        return fired if dtype == FLOAT else b.cast(fired, dtype, x.dims)

    return Steps(b.each(len(x.values), each), x.dims, x.view, dtype)


def spiking_neuron(b: UnrolledBuilder, node: fx.Node, module: nn.Module) -> Steps:
    x = b.of(node.args[0])
    inner = kind_of(str(node.target), module, size(x.view[0]), x.static)
    dims = tuple(dim for dim in x.dims if dim)  # ONNX Runtime compares [n, 1] with a scalar number by number
    dtype = b.stored_as(inner.count)
    kind = UnrolledKind(inner, dtype.dtype, x.gain)
    count = 1 if inner.static else inner.steps
    inputs = [b.read_step(x, t, dims) for t in range(count)]
    if kind.takes_decay:
        inputs.append(b.weight(f"{node.target}.decay", dynamics_of(module).float32_rate))
    inputs += [b.scalar(f"{inner.name.lower()}.{name}.{number:g}", number) for name, number in kind.constants.items()]
    if kind not in b.functions:
        b.functions[kind] = kind.function({f.name for f in b.functions.values()}, b.target.opset)  # type: ignore[index]
    values = b.ops(b.functions[kind], inputs, [dims] * inner.steps, dtype=dtype)  # type: ignore[index]
    return Steps(tuple(values), dims, x.view, dtype)


# functions


def rearrange(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    x = b.of(node.args[0])
    view = layout.rearranged(x.view, str(node.args[1]), node.kwargs)  # type: ignore[arg-type]
    if any(token.kind == Kind.TIME for dim in view for token in dim[1:]):
        raise UnsupportedError(f"{b.name}: time within {axes.show(view)} has no integer lowering")
    known = {id(token) for token in layout.flat(x.view)}
    new = [token for token in layout.flat(view) if id(token) not in known and token.kind != Kind.TIME]
    if new:
        raise UnsupportedError(f"{b.name}: a repetition along another axis than time has no integer lowering")
    return replace(x, view=view)


def elementwise(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    left, right = node.args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return _times(b, node)
    pair = (b.of(left), b.of(right))
    dims, wanted, view = _meeting(*pair)
    full = _with_time(view, pair)
    count = max(len(s.values) for s in pair)
    op_type = {operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul"}[node.target]  # type: ignore[index]
    known = [b.grids.get(each) for each in (left, right, node)]
    small = b.target.adds_spikes and node.target is not operator.sub and all(b.fits(grid) for grid in known)
    if small:  # spikes and counts of them as they are stored

        def bytes_(t: int) -> ir.Value:
            read = [b.read_step(s, t, d, b.spike, g.unit) for s, d, g in zip(pair, wanted, known[:2], strict=True)]  # type: ignore[union-attr]
            return b.op(op_type, read, dims, dtype=b.spike)

        return Steps(b.each(count, bytes_), dims, full, b.spike, known[2].unit)  # type: ignore[union-attr]
    if node.target is operator.mul and all(
        g is not None and g.low == 0 and g.high == 1 and g.unit == 1 for g in known[:2]
    ):

        def both(t: int) -> ir.Value:
            bits = [b.read_step(s, t, d, BOOL) for s, d in zip(pair, wanted, strict=True)]
            return b.cast(b.op("And", bits, dims, dtype=BOOL), b.spike, dims)

        return Steps(b.each(count, both), dims, full, b.spike)

    def each(t: int) -> ir.Value:
        return b.op(op_type, [b.read_step(s, t, d) for s, d in zip(pair, wanted, strict=True)], dims)

    gains = {s.gain for s in pair}
    if len(gains) > 1 or (op_type == "Mul" and gains != {0}):
        raise InternalError(f"{b.name}: its inputs are scaled differently")
    return Steps(b.each(count, each), dims, full, gain=gains.pop())


def _times(b: UnrolledBuilder, node: fx.Node) -> Steps:
    """A tensor times or over a number; a stored integer's unit and both gains go into the same product."""
    left, right = node.args
    x = b.of(left if isinstance(left, fx.Node) else right)
    number: Any = left if isinstance(right, fx.Node) else right
    by = 1 / number if node.target is operator.truediv else number
    gain = b.gains.get(node, 0)
    plain = replace(x, unit=1.0, gain=0)

    def each(t: int) -> ir.Value:
        whole = by * x.unit * factor(gain, t) / factor(x.gain, t)
        if x.dtype == I32 and whole != 1:
            return b.scaled(x.values[0 if x.static else t], whole, x.dims)
        value = b.read_step(plain, t, x.dims)
        return value if whole == 1 else b.op("Mul", [value, b.scalar(f"factor.{whole:g}", whole)], x.dims)

    return Steps(b.each(b.steps if gain or x.gain else len(x.values), each), x.dims, x.view, gain=gain)


def matmul(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    return matrix_product(b, node)


def reduction(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    x = b.of(node.args[0])
    gone, keep = set(node.kwargs["dim"]), bool(node.kwargs["keepdim"])  # type: ignore[arg-type]
    lost = [token for i, dim in enumerate(x.view) if i in gone for token in dim]
    view = tuple(() if i in gone else dim for i, dim in enumerate(x.view) if keep or i not in gone)
    over_time = any(token.kind == Kind.TIME for token in lost)
    lost = [token for token in lost if token.kind != Kind.TIME]
    mean = node.target is torch.mean
    values, dims = [b.read_step(x, t, x.dims) for t in range(len(x.values))], x.dims
    if over_time and not x.static:
        values = [b.op("Sum", values, dims, helper="over_time")]
        if mean:
            values = [b.op("Mul", [values[0], b.scalar("share", 1 / b.steps)], dims, helper="over_time")]
    elif over_time and not mean:
        values = [b.op("Mul", [values[0], b.scalar("steps", float(b.steps))], dims, helper="over_time")]
    if lost:
        source = Steps(tuple(values), dims, x.view)
        apart = tuple(part for dim in dims for part in runs(dim, tuple(lost)))
        over = [i for i, dim in enumerate(apart) if dim and dim[0] in lost]
        dims = tuple(() if i in over else dim for i, dim in enumerate(apart))
        inputs = [[b.read_step(source, t, apart), b.integers("axes", over)] for t in range(len(values))]
        values = [b.op("ReduceMean" if mean else "ReduceSum", each, dims) for each in inputs]
    return Steps(tuple(values), dims, view)


def block(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    source, dim, index, count = node.args
    assert isinstance(dim, int) and isinstance(count, int) and isinstance(index, int)
    x = b.of(source)
    rest = layout.blocks(timeless(x.view)[dim], count)
    readers = [rest] * count
    return _parts(b, node, x, dim, readers, index, [size(rest)] * count)


def part(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    source, dim = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(dim, int)
    users = sorted((u for u in source.users if u.target is ops.take_range), key=lambda u: int(u.args[2]))  # type: ignore[arg-type]
    widths = [int(u.args[3]) - int(u.args[2]) for u in users]  # type: ignore[arg-type]
    key = ("rests", source, dim)
    if key not in b.cache:
        b.cache[key] = [layout.fresh(b.program.type_of(u))[dim] for u in users]
    return _parts(b, node, b.of(source), dim, b.cache[key], users.index(node), widths)


def _parts(
    b: UnrolledBuilder, node: fx.Node, x: Steps, dim: int, rests: Sequence[Any], index: int, widths: Sequence[int]
) -> Steps:
    """Ranges of a dimension, one Split for all of them at each step."""
    whole = timeless(x.view)[dim]
    if sum(widths) != size(whole):
        raise InternalError(f"{b.name}: the ranges of {node.args[0]} do not tile it")
    # where the dimension lies by itself it is split as it is; else it is put last
    if whole in x.dims:
        dims = x.dims
    else:
        dims = (tuple(token for d in x.dims for token in d if token not in whole), whole)
    axis = dims.index(whole)
    outs = [(*dims[:axis], rest, *dims[axis + 1 :]) for rest in rests]

    def each(t: int) -> Any:
        key = ("parts", node.args[0], dim, t)
        if key not in b.cache:
            inputs = [b.read_step(x, t, dims, x.dtype), b.integers("split", widths)]
            b.cache[key] = b.ops("Split", inputs, outs, {"axis": axis}, helper="split", dtype=x.dtype)
        return b.cache[key][index]

    if x.dtype == FLOAT and x.unit != 1:
        raise InternalError(f"{b.name}: floats with a unit")
    view = (*x.view[:dim], rests[index], *x.view[dim + 1 :])
    return replace(x, values=b.each(len(x.values), each), dims=outs[index], view=view)


def attribute(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    view = b.fresh_view(node)
    if any(token.kind == Kind.TIME for dim in view for token in dim):
        raise UnsupportedError(f"{node.target}: a parameter for each time step has no integer lowering")
    empty = ir.Value(name=f"{node.target}.parameter")
    return Steps((empty,), view, view, parameter=str(node.target))


# shared by rules


def _channels_first(
    b: UnrolledBuilder, node: fx.Node, op_type: str, weights: Sequence[ir.Value], attributes: Any, keep: bool = False
) -> Steps:
    """One node a step that reads and gives ``[b, c, y, x]``; ``keep`` its element type."""
    x = b.of(node.args[0])
    view = b.fresh_view(node)
    dtype = x.dtype if keep and x.dtype in (b.spike, FLOAT) and not x.offset else FLOAT
    dims, source = timeless(view), timeless(x.view)
    values = b.each(
        len(x.values),
        lambda t: b.op(op_type, [b.read_step(x, t, source, dtype), *weights], dims, attributes, dtype=dtype),
    )
    kept = dtype == b.spike
    return b.channels_last(node, Steps(values, dims, view, dtype, x.unit if kept else 1.0, x.gain))


def _meeting(left: Steps, right: Steps) -> tuple[Dims, tuple[Dims, Dims], Dims]:
    """How the result of two values lies, how each is read, and the result's view of one step.

    Values of one shape meet with channels last, which every projection reads and writes.
    """
    a, b = left.timeless, right.timeless
    if axes.shape(a) != axes.shape(b) or left.parameter or right.parameter:
        return common_layout(_stored(left), _stored(right))
    view = layout.fresh(a)
    return rows_of(view), (rows_of(a), rows_of(b)), view


def rows_of(view: Dims) -> Dims:
    """Pixels or tokens as rows, channels as columns."""
    flat = layout.flat(view)
    apart = [tuple(token for token in flat if (token.kind == Kind.CHANNEL) == channel) for channel in (False, True)]
    return tuple(dim for dim in apart if dim)


def _stored(s: Steps) -> Stored:
    return Stored(None if s.parameter else s.values[0], s.dims, s.timeless, s.parameter)


def _with_time(view: Dims, pair: Sequence[Steps]) -> Dims:
    """A view of one step with the time tokens of its operands."""
    out = []
    for i, dim in enumerate(view):
        time: Any = ()
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
    **dict.fromkeys(ops.NEURONS, spiking_neuron),
    ops.IntegerSpike: integer_spike,
    ops.FixedPoint: fixed_point,
}
FUNCTION_RULES: dict[Any, Rule] = {
    **dict.fromkeys(ops.VIEWS, rearrange),
    **dict.fromkeys(ops.ELEMENTWISE, elementwise),
    torch.matmul: matmul,
    **dict.fromkeys(ops.REDUCTIONS, reduction),
    ops.take_block: block,
    ops.take_range: part,
}
__all__ = ["FUNCTION_RULES", "MODULE_RULES", "attribute"]
