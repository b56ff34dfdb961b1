"""Operations that cannot be computed one time step at a time: lowered as in a float file, on all steps at once.

The integer lowering keeps one ONNX value for each time step, and its rules (rules.py) compute each step by itself.
That fits an operation only if the integer lowering has a rule for it, and if time is in its operands and its result
where the rule leaves it alone: outermost, in a dimension that the operation does not read across. ``whole_nodes`` names
the other nodes. For one of them the builder

1. joins the steps of every operand to the array ``[T, N, ...]`` of the program, in float32 (``UnrolledBuilder.at``);
2. applies the float lowering's rule (float_rules.py), which does not know about steps;
3. splits the result into steps again where a reader wants them, and only there (``UnrolledBuilder.of``).

An operation needs a rule in float_rules.py only, then, to run in a quantized file as well. Its result is the real
number in float32, and its readers quantize it as they quantize every other real number.

Views are never computed at all. A view of a value with steps stays one, wherever it moves time to; its readers are
judged by its type.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn

from svitc.ir import ops
from svitc.ir.axes import Dims, Kind
from svitc.ir.operators.slicing import concatenate, select_indices
from svitc.ir.program import Program
from svitc.ir.standalone_layers import Quantized
from svitc.onnx import float_rules, layout
from svitc.onnx.builder import Builder, Stored, as_array
from svitc.onnx.fixed_point import fixed_point
from svitc.onnx.unrolled.steps import leading_time, time_axes

# modules whose windows, channels or positions are all dimensions but the first
_FIRST_IS_FREE = (*ops.CONVOLUTIONS, *ops.BATCH_NORMS, *ops.POOLS, *ops.PADS)


def whole_nodes(program: Program, functions: Collection[object], modules: Collection[type]) -> set[fx.Node]:
    """Return the nodes that are lowered on all time steps at once.

    Args:
        program: the quantized program.
        functions: functions with a rule in the integer lowering.
        modules: classes of layers with such a rule.
    """
    order: dict[int, int] = {}  # id of a time axis -> when it first appears
    whole: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        types = [program.type_of(n) for n in (*node.all_input_nodes, node)]
        for dims in types:
            for _, axis in time_axes(dims):
                order.setdefault(id(axis), len(order))
        if node.op not in ("call_module", "call_function"):
            continue
        if node.target in ops.VIEWS:
            if _repeats_within(program, node):
                whole.add(node)
            continue
        module = program.module_of(node)
        known = isinstance(module, tuple(modules)) if module is not None else node.target in functions
        if known and ops.has_state(module):  # it sees its first dimension alone as time, wherever else time may be
            continue
        if not (known and all(_outermost(dims, order) for dims in types) and _leaves_time_alone(program, node)):
            whole.add(node)
    return whole


def _repeats_within(program: Program, node: fx.Node) -> bool:
    """Return whether a view repeats a value along another axis than time, or along a second time axis."""
    source = program.type_of(node.all_input_nodes[0])
    old = {id(axis) for dim in source for axis in dim}
    new = [axis for dim in program.type_of(node) for axis in dim if id(axis) not in old and axis.size != 1]
    return any(axis.kind != Kind.TIME for axis in new) or (len(new) > 0 and len(time_axes(source)) > 0)


def _outermost(dims: Dims, order: dict[int, int]) -> bool:
    """Return whether the time axes of a type are the outermost factors of one dimension, in their first order."""
    time = time_axes(dims)
    if not time:
        return True
    leading = leading_time(dims)
    ranks = [order[id(axis)] for _, axis in time]
    return leading == (time[0][0], len(time)) and ranks == sorted(ranks)


def _leaves_time_alone(program: Program, node: fx.Node) -> bool:
    """Return whether an operation whose types have time outermost computes every step by itself."""
    types = [program.type_of(n) for n in node.all_input_nodes]
    time = [time_axes(dims) for dims in types]
    module = program.module_of(node)
    if module is not None and {id(axis) for _, axis in time_axes(program.type_of(node))} - {id(a) for _, a in time[0]}:
        return False  # its channels are time steps, although there is one step before it
    if isinstance(module, _FIRST_IS_FREE):
        return all(i == 0 for i, _ in time[0])
    if isinstance(module, nn.Linear):
        return all(i < len(types[0]) - 1 for i, _ in time[0])
    if node.target in (ops.take_block, ops.take_range):
        dim = types[0][node.args[1]]  # type: ignore[index]
        if not any(axis.kind == Kind.TIME for axis in dim):
            return True
        return node.target is ops.take_block and all(axis.kind == Kind.TIME for axis in dim)
    if node.target in ops.REDUCTIONS:
        return True
    if node.target in (concatenate, select_indices):
        places: Any = node.kwargs["dim"]
        if any(axis.kind != Kind.PIXEL for dims in (*types, program.type_of(node)) for axis in dims[places]):
            return False
    # operands that meet: their steps must be the same ones
    places = {(len(dims) - i, id(axis)) for dims, found in zip(types, time, strict=True) for i, axis in found}
    sets = [{(len(dims) - i, id(axis)) for i, axis in found} for dims, found in zip(types, time, strict=True)]
    if any(found and found != places for found in sets):
        return False
    return node.target is not torch.matmul or all(place > 2 for place, _ in places)


# rules for layers that only quantized programs have


def _quantized(b: Builder, node: fx.Node, module: Quantized) -> Stored:
    """Lower a layer with integer weights: sums of whole numbers, times the scale, plus the bias, as the reference.

    The rule of the float layer emits the sums; it sees the layer without its bias.
    """
    bare = copy.copy(module)
    bare._buffers = {**module._buffers, "bias": None}
    rule = next(rule for kind, rule in float_rules.MODULE_RULES.items() if isinstance(module, kind))
    sums = rule(b, node, bare)
    dims = layout.physical(sums.view)
    channel = len(dims) - 1 if isinstance(module, nn.Linear) else 1
    shape = [-1 if i == channel else 1 for i in range(len(dims))]
    value = b.read(sums, dims)
    for op_type, name in (("Mul", "scale"), ("Add", "bias")):
        column = b.initializer(f"{node.target}.{name}", as_array(module.get_buffer(name)).reshape(shape))
        value = b.op(op_type, [value, column], dims, helper=name)
    return b.store(value, dims, sums.view)


MODULE_RULES: dict[type, float_rules.Rule] = {
    Quantized: _quantized,
    ops.FixedPoint: fixed_point,
    **float_rules.MODULE_RULES,
}
FUNCTION_RULES = float_rules.FUNCTION_RULES
__all__ = ["FUNCTION_RULES", "MODULE_RULES", "whole_nodes"]
