"""ReestimateBatchNorm: adapts the statistics of batch norms whose inputs changed when channels were pruned."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import fx, nn

from svitc.ir import ops
from svitc.ir.channel_slicing import selection
from svitc.ir.graph import attribute_of
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage
from svitc.planning.plan import Plan

Values: TypeAlias = dict[fx.Node, torch.Tensor]  # node -> its value

DROPPED = torch.empty(0)  # stands for a value that no later node reads
TINY = 1e-4  # smallest ratio of variances, and inverse of the largest


class ReestimateBatchNorm(Pass):
    """Shift and scale the statistics of every batch norm after a pruned layer, in the order of execution.

    before   m, v                              as learned from the original's values x
    after    v' = r (v + eps) - eps            r = var(x') / var(x), x' what comes in now, through batch norms
             m' = mean(x') - (mean(x) - m) r^½     already re-estimated

    so that the output of a batch norm keeps its mean and variance. Both networks run side by side on the same images,
    so that peculiarities of the images cancel out: a few hundred images suffice, and a batch norm whose input did not
    change keeps its statistics to the last bit. It starts from the original's statistics, even after another refit
    has changed them, since x' reflects all changes.

    Args:
        original: the program before pruning.
        plan: the channels that were kept.
        inputs: images in the program's input layout.
    """

    requires = (Stage.PRUNED, Stage.PRUNED)
    values_only = True

    def __init__(self, original: Program, plan: Plan, inputs: torch.Tensor) -> None:
        self.original, self.plan, self.inputs = original, plan, inputs

    def apply(self, program: Program) -> PassResult:
        result = PassResult(self.name)
        chosen, _ = selection(self.original, self.plan.validate(self.original))
        original = {node.name: node for node in self.original.graph.nodes}
        for side in (self.original, program):
            side.module.eval()
            side.reset()
        original_values: Values = {}
        values: Values = {}
        with torch.no_grad():
            for node in program.graph.nodes:
                if node.op == "output":
                    break
                twin = original[node.name]
                original_values[twin] = _run(self.original, twin, original_values, self.inputs)
                if _same(self.original, twin, program, node, original_values, values):
                    values[node] = original_values[twin]
                else:
                    module = program.module_of(node)
                    if ops.is_batch_norm(module):
                        kept = chosen(self.original.parameters_of(twin)["running_mean"][0])
                        original_norm = self.original.module_of(twin)
                        assert ops.is_batch_norm(original_norm)
                        before, now = original_values[twin.all_input_nodes[0]], values[node.all_input_nodes[0]]
                        _shift(module, original_norm, now, before, kept)
                        result.changed.append(str(node.target))
                    values[node] = _run(program, node, values, self.inputs)
                _forget(node, values)
                _forget(twin, original_values)
        for side in (self.original, program):
            side.reset()
        return result


def _shift(
    norm: nn.BatchNorm2d,
    original_norm: nn.BatchNorm2d,
    now: torch.Tensor,
    before: torch.Tensor,
    kept: np.ndarray | None,
) -> None:
    """Set the statistics of a batch norm from those of the original's.

    Args:
        norm: the batch norm to change.
        original_norm: the same one in the original.
        now: its input in the pruned program.
        before: its input in the original.
        kept: indices of the channels that were kept; None for all.
    """
    mean, var = original_norm.running_mean, original_norm.running_var
    assert mean is not None and var is not None
    assert norm.running_mean is not None and norm.running_var is not None
    if kept is not None:
        index = torch.from_numpy(kept)
        before, mean, var = before.index_select(1, index), mean[index], var[index]
    others = [i for i in range(now.ndim) if i != 1]
    ratio = (now.var(others) / before.var(others).clamp_min(TINY**2)).clamp(TINY, 1 / TINY)
    norm.running_mean.copy_(now.mean(others) - (before.mean(others) - mean) * ratio.sqrt())
    norm.running_var.copy_(((var + norm.eps) * ratio - norm.eps).clamp_min(0))


def _run(program: Program, node: fx.Node, values: Values, x: torch.Tensor) -> torch.Tensor:
    """Return the value of one node from those before it; ``x`` is the input of the program."""
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
    original_values: Values,
    values: Values,
) -> bool:
    """Return whether a node has the value of the original: the same input tensors and equal parameters."""
    for a, b in zip(twin.all_input_nodes, node.all_input_nodes, strict=True):
        if original_values[a] is not values[b]:
            return False
    if node.op == "call_module":
        before, now = (side.module.get_submodule(str(node.target)).state_dict() for side in (original, program))
        return all(before[key].shape == now[key].shape and torch.equal(before[key], now[key]) for key in before)
    if node.op == "get_attr":
        name = str(node.target)
        first, second = attribute_of(original.module, name), attribute_of(program.module, name)
        return first.shape == second.shape and torch.equal(first, second)
    return node.kwargs == twin.kwargs


def _forget(node: fx.Node, values: Values) -> None:
    """Drop the values that no later node reads."""
    for source in node.all_input_nodes:
        if all(user in values or user.op == "output" for user in source.users):
            values[source] = DROPPED
