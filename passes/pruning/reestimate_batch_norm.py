"""Re-estimate batch norms: behind a cut, other values come in than those whose mean and variance were learnt."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from svitc.ir import ops
from svitc.ir.channel_slicing import selection
from svitc.ir.graph import attribute_of
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage
from svitc.planning.plan import Plan

TINY = 1e-4  # a channel's variance hardly changes by more than its inverse


class ReestimateBatchNorm(Pass):
    """Shift and scale the statistics of every batch norm behind a cut, in the order of execution.

    before   m, v                              as learnt from the original's values x
    after    v' = r (v + eps) - eps            r = var(x') / var(x), x' what comes in now, through batch norms
             m' = mean(x') - (mean(x) - m) r^½     already re-estimated

    so that what a batch norm puts out has the mean and the variance that it had. Both networks run side by side on
    the same images, so that what is peculiar to the images cancels out: a few hundred of them do, and a batch norm
    that nothing changed keeps its statistics to the last bit. It starts from the original's statistics, whatever
    another refit has made of them: x' holds all of it.
    """

    requires = (Stage.PRUNED, Stage.PRUNED)

    def __init__(self, original: Program, plan: Plan, inputs: torch.Tensor) -> None:
        self.original, self.plan, self.inputs = original, plan, inputs

    def apply(self, program: Program) -> PassResult:
        result = PassResult(self.name)
        chosen, _ = selection(self.original, self.plan.validate(self.original))
        original = {node.name: node for node in self.original.graph.nodes}
        for side in (self.original, program):
            side.module.eval()
            side.reset()
        theirs: dict[fx.Node, Any] = {}
        ours: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for node in program.graph.nodes:
                if node.op == "output":
                    break
                twin = original[node.name]
                theirs[twin] = _run(self.original, twin, theirs, self.inputs)
                if _same(self.original, twin, program, node, theirs, ours):
                    ours[node] = theirs[twin]
                else:
                    module = program.module_of(node)
                    if ops.is_batch_norm(module):
                        kept = chosen(self.original.parameters_of(twin)["running_mean"][0])
                        learnt = self.original.module_of(twin)
                        _shift(module, learnt, ours[node.all_input_nodes[0]], theirs[twin.all_input_nodes[0]], kept)
                        result.changed.append(str(node.target))
                    ours[node] = _run(program, node, ours, self.inputs)
                _forget(node, ours)
                _forget(twin, theirs)
        for side in (self.original, program):
            side.reset()
        return result


def _shift(norm: Any, learnt: Any, now: torch.Tensor, before: torch.Tensor, kept: Any) -> None:
    mean, var = learnt.running_mean, learnt.running_var
    if kept is not None:
        index = torch.from_numpy(kept)
        before, mean, var = before.index_select(1, index), mean[index], var[index]
    others = [i for i in range(now.ndim) if i != 1]
    ratio = (now.var(others) / before.var(others).clamp_min(TINY**2)).clamp(TINY, 1 / TINY)
    norm.running_mean.copy_(now.mean(others) - (before.mean(others) - mean) * ratio.sqrt())
    norm.running_var.copy_(((var + norm.eps) * ratio - norm.eps).clamp_min(0))


def _run(program: Program, node: fx.Node, values: dict[fx.Node, Any], x: torch.Tensor) -> Any:
    if node.op == "placeholder":
        return x
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    if node.op == "call_module":
        return program.module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "get_attr":
        return attribute_of(program.module, str(node.target))
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _same(
    original: Program,
    twin: fx.Node,
    program: Program,
    node: fx.Node,
    theirs: dict[fx.Node, Any],
    ours: dict[fx.Node, Any],
) -> bool:
    """Whether a node gives the original's value: the very same inputs, and the same parameters."""
    for a, b in zip(twin.all_input_nodes, node.all_input_nodes, strict=True):
        if theirs[a] is not ours[b]:
            return False
    if node.op == "call_module":
        was, now = (side.module.get_submodule(str(node.target)).state_dict() for side in (original, program))
        return all(was[key].shape == now[key].shape and torch.equal(was[key], now[key]) for key in was)
    if node.op == "get_attr":
        name = str(node.target)
        first, second = attribute_of(original.module, name), attribute_of(program.module, name)
        return first.shape == second.shape and torch.equal(first, second)
    return node.kwargs == twin.kwargs


def _forget(node: fx.Node, values: dict[fx.Node, Any]) -> None:
    """Drop the values that no later node reads."""
    for source in node.all_input_nodes:
        if all(user in values or user.op == "output" for user in source.users):
            values[source] = None
