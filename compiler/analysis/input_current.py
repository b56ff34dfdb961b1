"""Input currents: the layers whose outputs add up to the input of a neuron, and the operations in between."""

from __future__ import annotations

import operator
from typing import NamedTuple

from torch import fx, nn

from svitc.analysis.integer_range import IntegerRange
from svitc.ir import ops
from svitc.ir.axes import Kind
from svitc.ir.graph import describe, input_type
from svitc.ir.program import Program

CARRIERS = (*ops.VIEWS, ops.take_block, ops.take_range)  # a factor can be moved across them


class Current(NamedTuple):
    """All values that must be scaled together: sums of currents, their sources and the neurons that read them.

    Attributes:
        values: all of them.
        sources: projections, and products with a number.
        bare: values that have no factor and get one (a matrix product, spikes that are added).
        readers: neurons.
        exits: (value, node) for every other node that reads one of the values.
        pooled: whether the maximum of some of them is taken, so that only positive factors can be moved.
        blocked: why they cannot be scaled, or None.
    """

    values: list[fx.Node]
    sources: list[fx.Node]
    bare: list[fx.Node]
    readers: list[fx.Node]
    exits: list[tuple[fx.Node, fx.Node]]
    pooled: bool
    blocked: str | None


def current_of(program: Program, start: fx.Node, integer_values: dict[fx.Node, IntegerRange]) -> Current:
    """Return what must be scaled together with the input of a neuron.

    Args:
        program: the program.
        start: the neuron.
        integer_values: the program's integer ranges. Integers stay integers: their product is scaled, not its factors.
    """
    current = Current([], [], [], [], [], False, None)
    blocked, pooled = None, False
    todo, seen = [start.all_input_nodes[0]], set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        current.values.append(node)
        module = program.module_of(node)
        pooled |= isinstance(module, nn.MaxPool2d)
        if node in integer_values and not by_number(node):
            current.bare.append(node)
            current.readers.extend(user for user in node.users if user is start)
            continue
        for user in node.users:
            if ops.has_state(program.module_of(user)):
                if user not in current.readers:
                    current.readers.append(user)
            elif _carries(program, user) and user not in integer_values:
                todo.append(user)
            else:
                current.exits.append((node, user))
        if _carries(program, node):
            todo += node.all_input_nodes
        elif by_number(node) or (ops.is_projection(module) and program.called_once(node)):
            current.sources.append(node)
        else:
            blocked = blocked or f"{describe(node)} is part of the current and has no factor"
    return current._replace(pooled=pooled, blocked=blocked)


def by_number(node: fx.Node) -> bool:
    """Return whether a node multiplies or divides a value by a number."""
    numbers = [arg for arg in node.args if not isinstance(arg, fx.Node)]
    return node.target in (operator.mul, operator.truediv) and len(numbers) == 1


def _carries(program: Program, node: fx.Node) -> bool:
    """Return whether an operation is linear without a factor of its own: a sum, a view, a maximum, padding."""
    if node.target in (operator.add, operator.sub):
        return True
    if node.target is ops.take_block and any(a.kind == Kind.TIME for a in input_type(node.args[0])[int(node.args[1])]):  # type: ignore[arg-type]
        return False  # one time step, without the others that a factor by step refers to
    return node.target in CARRIERS or isinstance(program.module_of(node), (nn.MaxPool2d, nn.ZeroPad2d))
