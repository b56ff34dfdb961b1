"""Operators that combine time steps."""

from __future__ import annotations

import torch
from torch import fx

from svitc.ir import axes
from svitc.ir.axes import AxisConflict, Dims, Kind
from svitc.ir.graph import input_type
from svitc.ir.operators.table import Operator


def mix_steps(x, weight, bias):
    return torch.addmm(bias, weight, x.flatten(1)).view(x.shape)


def mix_rule(node: fx.Node) -> Dims:
    """Return the type of ``mix_steps``, whose value at each time step is a weighted sum of all steps of its input.

    Raises:
        AxisConflict: the first dimension is not time alone, or there is not one weight for each pair of steps.
    """
    x, weight, bias = (input_type(arg) for arg in node.args)
    if not x or len(x[0]) != 1 or x[0][0].kind != Kind.TIME:
        raise AxisConflict(f"the first dimension of {axes.show(x)} is not time alone")
    steps = axes.size(x[0])
    if [axes.size(dim) for dim in weight] != [steps, steps]:
        raise AxisConflict(f"{steps} time steps need {steps} x {steps} weights, not {axes.show(weight)}")
    if len(bias) > 2 or [axes.size(dim) for dim in bias][1:] not in ([], [1]):
        raise AxisConflict(f"a bias {axes.show(bias)} is not one number for each time step")
    if any(not isinstance(arg, fx.Node) or arg.op != "get_attr" for arg in node.args[1:]):
        raise AxisConflict("the weights of time steps are no parameters")
    for dim in (*weight, *bias):
        for axis in dim:
            axis.freeze("weights of time steps")
    return x


def _summed(node: fx.Node) -> int:
    """Return the number of terms of each sum: all time steps, and the bias."""
    return axes.size(input_type(node.args[0])[0]) + 1


TIME = (
    Operator(
        mix_steps,
        mix_rule,
        "addmm of time steps, as in PSN",
        tensors=(3, 3),
        fills=True,
        linear=True,
        terms=_summed,
        addend=2,
    ),
)
