"""SingleStep: makes a program of T time steps one of a single step, whose reductions over time run along."""

from __future__ import annotations

from math import prod

import einops
from torch import fx

from svitc.analysis.time_mixing import Role, StepRoles, step_roles, time_places
from svitc.ir import axes, ops
from svitc.ir.axes import Dims, Kind
from svitc.ir.einops_pattern import bind_letters, parse_pattern
from svitc.ir.graph import InputSpec
from svitc.ir.operators.normalization import cumulative_sum
from svitc.ir.operators.regroup import regroup
from svitc.ir.outputs import output_node, output_values, scores_of_single_output
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program
from svitc.passes.lowering.average_steps import SCOPE


class SingleStep(Pass):
    """Reduce a program to one time step: what is per step gets a time axis of size 1, membranes stay the neurons' own.

    before   image [N, C, H, W] -> repeat over t=4 -> … -> mean over t -> head
    after    image [N, C, H, W] -> repeat over t=1 -> … -> running mean -> mean over t -> head

    Class scores at each time step become their running mean, unless ``per_step``; outputs lose their time axis.

    Args:
        per_step: leave class scores as they are at each time step.

    Refuses a program in which an operation needs several steps at once, with ``UnsupportedError``.
    """

    def __init__(self, per_step: bool = False) -> None:
        self.per_step = per_step

    def apply(self, program: Program) -> PassResult:
        result, roles = PassResult(self.name), step_roles(program)
        scores = None if self.per_step else scores_of_single_output(program.graph, program.info)
        for node in list(program.graph.nodes):
            if node.op == "call_function":
                self._shorten(program, node)
                result.changed.append(node.name)
        for node, kind in roles.reductions.items():
            self._run_along(program, roles, node, kind)
        self._end(program, roles, averages=scores is not None)
        if program.input.events:
            program.input = InputSpec((1, *program.input.shape[1:]))
        return result

    def _shorten(self, program: Program, node: fx.Node) -> None:
        """Divide the sizes that a view names by the time steps in them."""
        dims = program.type_of(node)
        if node.target is regroup:
            sizes = [-1 if any(a.kind == Kind.BATCH for a in dim) else _steps_apart(dim) for dim in dims]
            node.kwargs = {"sizes": tuple(sizes)}
        if node.target not in ops.VIEWS:
            return
        pattern, sizes_of = str(node.args[1]), dict(node.kwargs)
        left = " ".join(letter for dim in parse_pattern(pattern)[0] for letter in dim).split()
        source = program.type_of(node.all_input_nodes[0])
        bound = bind_letters(source, pattern, {k: v for k, v in sizes_of.items() if k in left})
        for letters, dim in zip(parse_pattern(pattern)[1], dims, strict=True):
            if len(letters) == 1 and letters[0] not in bound:
                bound[letters[0]] = dim  # what a repeat adds
        node.kwargs = {name: _steps_apart(bound[name]) if name in bound else n for name, n in sizes_of.items()}  # type: ignore[misc]

    def _run_along(self, program: Program, roles: StepRoles, node: fx.Node, kind: str) -> None:
        """Put a running reduction in front of a reduction over time, which has one step to reduce then."""
        if kind == "latest":
            self._take_this(node)
            return
        running = _emit(program, node, node.all_input_nodes[0], kind, str(node.meta.get("scope") or ""))
        if node.target is cumulative_sum:
            running.meta["dims"] = node.meta["dims"]
            roles.roles[running] = roles.roles[node]  # it may be an output
            node.replace_all_uses_with(running)
            program.graph.erase_node(node)
        else:
            node.replace_input_with(node.all_input_nodes[0], running)

    def _take_this(self, node: fx.Node) -> None:
        """Let what takes the last of all steps take the only one."""
        if node.target is ops.take_block:
            node.args = (*node.args[:2], 0, 1)
        elif node.target not in ops.VIEWS:
            only = {"start": 0, "stop": 1, "step": 1, "indices": (0,)}
            node.kwargs = {key: only.get(key, value) for key, value in node.kwargs.items()}  # type: ignore[misc]

    def _end(self, program: Program, roles: StepRoles, averages: bool) -> None:
        """Let the outputs have no time axis; of class scores return the mean so far."""
        output, ends = output_node(program.graph), []
        for value in output_values(program.graph):
            places = time_places(program.type_of(value))
            end = value
            if roles.roles[value] is Role.PER_STEP and places:
                if averages:
                    end = _emit(program, output, end, "mean", SCOPE)
                end = _without_time(program, output, value, end, places[0][0])
            ends.append(end)
        output.args = (ends[0] if len(ends) == 1 else tuple(ends),)


def _steps_apart(dim: axes.Dim) -> int:
    """Return the size of a dimension without time."""
    return prod(axis.size for axis in axes.resolve(dim) if axis.kind != Kind.TIME)


def _emit(program: Program, before: fx.Node, value: fx.Node, kind: str, scope: str) -> fx.Node:
    """Insert a running reduction of a value in front of a node, and return it."""
    base = f"{scope}.running_{kind}".lstrip(".")
    paths, path, count = {name for name, _ in program.module.named_modules()}, base, 1
    while path in paths:
        count += 1
        path = f"{base}_{count}"
    program.module.add_submodule(path, ops.RunningReduction(kind))
    with program.graph.inserting_before(before):
        running = program.graph.call_module(path, (value,))
    running.meta.update({k: v for k, v in before.meta.items() if k == "source"}, scope=scope)
    return running


def _without_time(program: Program, before: fx.Node, value: fx.Node, end: fx.Node, place: int) -> fx.Node:
    """Return an output without its time axis, if that is a dimension by itself.

    Args:
        program: the program, with the types of all time steps.
        before: where a node is inserted.
        value: the output as it was.
        end: the output as it is.
        place: index of the time dimension.
    """
    dims: Dims = program.type_of(value)
    if any(axis.kind != Kind.TIME for axis in dims[place]):
        return end
    letters = [f"d{i}" for i in range(len(dims))]
    left = " ".join("1" if i == place else letter for i, letter in enumerate(letters))
    right = " ".join(letter for i, letter in enumerate(letters) if i != place)
    with program.graph.inserting_before(before):
        view = program.graph.call_function(einops.rearrange, (end, f"{left} -> {right}"))
    view.meta.update({k: v for k, v in value.meta.items() if k == "source"}, scope=SCOPE)
    return view


__all__ = ["SingleStep"]
