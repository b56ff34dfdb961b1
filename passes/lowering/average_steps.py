"""AverageSteps: averages class scores over the time steps, as everyone does who reads them."""

from __future__ import annotations

import operator

import einops
from torch import fx

from svitc.ir import axes, ops
from svitc.ir.outputs import output_values, scores_of_single_output
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program

SCOPE = "time_average"  # what the nodes are named after


class AverageSteps(Pass):
    """Let a model that returns class scores at each time step, and nothing else, return their average.

    before   logits [T, N, classes]
    after    (((logits[0] + logits[1]) + logits[2]) + …) * (1 / T), [N, classes]

    The sum is written out. A runtime may take the terms of a mean in any order, which changes the last bit of the
    result; it adds two tensors in one way only. So the outputs of a file with integer weights stay equal, bit for bit,
    in all runtimes.

    Refuses nothing; several outputs, and one that is not of class scores, are not matched.
    """

    def match(self, program: Program, node: fx.Node) -> bool:
        return node.op == "output" and scores_of_single_output(program.graph, program.info) is not None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        scores, (value,) = scores_of_single_output(program.graph, program.info), output_values(program.graph)
        assert scores is not None and scores.time is not None
        graph, dim = program.graph, scores.time
        count = axes.size(program.type_of(value)[dim])
        added: list[fx.Node] = []

        def emit(function: object, *args: object, **kwargs: object) -> fx.Node:
            with graph.inserting_before(node):
                added.append(graph.call_function(function, args, kwargs))  # type: ignore[arg-type]
            return added[-1]

        total = value
        if count > 1:
            first, *others = [emit(ops.take_block, value, dim, t, count) for t in range(count)]
            total = first
            for step in others:
                total = emit(operator.add, total, step)
            total = emit(operator.mul, total, 1 / count)
        letters = ["a", "b", "c"]  # of the three dimensions, of which that of time has one element now
        kept = [letter for i, letter in enumerate(letters) if i != dim]
        pattern = f"{' '.join('1' if i == dim else letter for i, letter in enumerate(letters))} -> {' '.join(kept)}"
        node.args = (emit(einops.rearrange, total, pattern),)
        for each in added:
            each.meta.update(scope=SCOPE, **{k: v for k, v in value.meta.items() if k == "source"})


def averaged(program: Program) -> Program:
    """Return a copy of a program whose class scores are averaged over time; others are returned as they are."""
    if scores_of_single_output(program.graph, program.info) is None:
        return program
    twin = program.copy()
    AverageSteps()(twin)
    return twin


__all__ = ["AverageSteps", "averaged"]
