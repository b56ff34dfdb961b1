"""A program in which the channels that a plan removes are silenced: it must compute what the pruned one does."""

from __future__ import annotations

import torch

from svitc.ir.filled import is_threshold
from svitc.ir.graph import attribute_of
from svitc.ir.program import Program
from svitc.passes.pruning.prune import Prune
from svitc.planning.plan import Plan


def masked(program: Program, plan: Plan) -> Program:
    """Return a copy in float64 with every parameter along removed channels set to 0, but for thresholds."""
    twin = program.copy()
    twin.module.double()
    keep = plan.validate(twin)
    groups = {id(group.axis): group for group in twin.groups}
    by_head = {id(group.head_axis): group for group in twin.groups if group.head_axis is not None}
    with torch.no_grad():
        for node in twin.graph.nodes:
            if is_threshold(node, twin.module):
                continue  # without it, a neuron would fire although it has no input
            for name, dims in twin.parameters_of(node).items():
                value = attribute_of(twin.module, f"{node.target}.{name}" if name else str(node.target))
                for i, dim in enumerate(dims):
                    touched = [groups[id(axis)] for axis in dim if id(axis) in groups]
                    touched = touched or [by_head[id(axis)] for axis in dim if id(axis) in by_head][:1]
                    for group in touched:
                        gone = torch.from_numpy(~group.mask(dim, keep[group.name]).copy())
                        if gone.any() and name != "running_var":
                            value.movedim(i, 0)[gone] = 0
    return twin


def pruned(program: Program, plan: Plan) -> Program:
    """Return a copy in float64 without the removed channels."""
    twin = program.copy()
    Prune(plan)(twin)
    twin.module.double()
    return twin
