"""The input current of a neuron: the layers that make it, and what carries it from them."""

from __future__ import annotations

import operator
from typing import NamedTuple

from torch import fx, nn

from svitc.analysis.integer_range import IntegerRange
from svitc.ir import ops
from svitc.ir.graph import describe
from svitc.ir.program import Program

CARRIERS = (*ops.VIEWS, ops.take_block, ops.take_range)  # any factor passes through them


class Current(NamedTuple):
    """All values that must be scaled together: sums of currents, their sources and the neurons that read them.

    Attributes:
        values: all of them.
        sources: projections, and products with a number.
        bare: values without a factor of their own that get one (a matrix product, spikes that are added).
        readers: neurons.
        exits: (value, node) for all else that reads one of the values.
        pooled: whether a maximum is taken of some, which only factors above 0 pass through.
        blocked: why they cannot be scaled, or None.
    """

    values: list[fx.Node]
    sources: list[fx.Node]
    bare: list[fx.Node]
    readers: list[fx.Node]
    exits: list[tuple[fx.Node, fx.Node]]
    pooled: bool
    blocked: str | None


def current_of(program: Program, start: fx.Node, known: dict[fx.Node, IntegerRange]) -> Current:
    """What must be scaled together with the input of a neuron.

    Args:
        known: the program's grids. Whole numbers stay whole: a product of them is what is scaled.
    """
    found = Current([], [], [], [], [], False, None)
    blocked, pooled = None, False
    todo, seen = [start.all_input_nodes[0]], set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        found.values.append(node)
        module = program.module_of(node)
        pooled |= isinstance(module, nn.MaxPool2d)
        if node in known and not by_number(node):
            found.bare.append(node)
            found.readers.extend(each for each in node.users if each is start)
            continue
        for user in node.users:
            if ops.has_state(program.module_of(user)):
                if user not in found.readers:
                    found.readers.append(user)
            elif _carries(program, user) and user not in known:
                todo.append(user)
            else:
                found.exits.append((node, user))
        if _carries(program, node):
            todo += node.all_input_nodes
        elif by_number(node) or (ops.is_projection(module) and program.called_once(node)):
            found.sources.append(node)
        else:
            blocked = blocked or f"{describe(node)} is part of the current and has no factor"
    return found._replace(pooled=pooled, blocked=blocked)


def by_number(node: fx.Node) -> bool:
    """Whether a node is a value times or over a number."""
    numbers = [each for each in node.args if not isinstance(each, fx.Node)]
    return node.target in (operator.mul, operator.truediv) and len(numbers) == 1


def _carries(program: Program, node: fx.Node) -> bool:
    """Whether an operation gives twice as much for inputs twice as large, and is no source itself."""
    if node.target in (operator.add, operator.sub):
        return True
    return node.target in CARRIERS or isinstance(program.module_of(node), (nn.MaxPool2d, nn.ZeroPad2d))
