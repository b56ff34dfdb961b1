"""Float32 rounding error: how far the input of each neuron may lie from its exact value, from magnitudes.

A sum of n products computed in floating point differs from the exact one by at most ``lambda sqrt(n) u`` times
the sum of the magnitudes, with overwhelming probability (Higham and Mary, "A new approach to probabilistic rounding
error analysis", SIAM J. Sci. Comput. 41(5), 2019, theorem 2.4), where u is half a unit in the last place. The
magnitudes come from running the program itself with every weight, mean and bias made positive.
"""

from __future__ import annotations

import math
import operator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import fx, nn

from svitc.ir import axes, ops
from svitc.ir.neuron_dynamics import NeuronDynamics, dynamics_of
from svitc.ir.operators.broadcasting import broadcast_rule, pointwise_rule
from svitc.ir.operators.registry import OPERATORS, operator_of
from svitc.ir.operators.several import where
from svitc.ir.operators.table import Operator
from svitc.ir.outputs import output_values
from svitc.ir.program import Program

UNIT = 2.0**-24
# The file and the reference both round, so that each may use half of the bound. A single sum exceeds a bound of lambda
# with a probability of 2 exp(-lambda^2 / 2).
LAMBDA = 8.0
MASKED = 1e30  # what masks of attention hold for infinity is larger


def magnitudes(program: Program) -> Program:
    """Return a copy that computes, for each value between neurons, a bound on the sum of its magnitudes.

    Run it with the absolute input, and with the reference's spikes at each neuron and its values at each operator that
    has a ``slope`` (``verification.recorder.record_magnitudes``).
    """
    twin = program.copy()
    with torch.no_grad():
        for module in twin.module.modules():
            if ops.is_projection(module):
                module.weight.abs_()
                if module.bias is not None:
                    module.bias.abs_()
            elif ops.is_batch_norm(module):
                assert module.running_mean is not None
                module.running_mean.abs_().neg_()
                for parameter in module.parameters():
                    parameter.abs_()
        for node in list(twin.graph.nodes):
            if node.op == "get_attr":
                owner, _, name = str(node.target).rpartition(".")
                value = getattr(twin.module.get_submodule(owner), name)
                if value.dtype != torch.bool:
                    value.abs_()
            elif node.target is operator.sub:
                node.target = operator.add
            elif (general := operator_of(node.target)) is not None:
                _enlarge(twin, node, general)
            elif node.target in (operator.mul, operator.truediv):
                node.args = tuple(abs(a) if isinstance(a, (int, float)) else a for a in node.args)
    twin.module.recompile()
    return twin


def _enlarge(twin: Program, node: fx.Node, general: Operator) -> None:
    """Replace a general operator by a bound on its value and on its error: ``|f(x)| <= |f(0)| + L |x|``."""
    if general.moves or general.linear or general.slope is not None:
        return
    if general.function is where:
        node.target = _bound_of_choice
        return
    if general.bound is not None:
        node.target = general.bound
        return
    lipschitz = general.lipschitz if general.lipschitz is not None else 4.0
    if general.rule not in (pointwise_rule, broadcast_rule):
        node.kwargs = {"name": general.name, "attributes": dict(node.kwargs), "lipschitz": lipschitz}
        node.target = _bound_along
        return
    zeros = [torch.zeros(1) for _ in node.args]
    offset = float(general.function(*zeros, **node.kwargs).nan_to_num().abs())
    node.target, node.kwargs = _bound_of, {"lipschitz": lipschitz, "offset": offset}


def _bound_of_choice(condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return a bound for one of two values; what a mask holds for infinity has no rounding error."""
    x, y, _ = torch.broadcast_tensors(*(value.where(value < MASKED, 0) for value in (x, y)), condition)
    return torch.maximum(x, y)


def _bound_of(*tensors: torch.Tensor, lipschitz: float, offset: float) -> torch.Tensor:
    total = sum(tensors[1:], start=tensors[0])
    return total * lipschitz + offset


def bound_at(general: Operator, x: torch.Tensor, magnitude: torch.Tensor, **attributes: Any) -> torch.Tensor:
    """Return a bound for an operator whose derivative has no bound, at the values that it gets.

    To first order, f(x + d) = f(x) + f'(x) d, and rounding adds a share of f(x). So where |d| is at most a small share
    c of a magnitude m, the error is at most that share of ``|f(x)| + |f'(x)| m``.

    Args:
        general: the operator f.
        x: its argument.
        magnitude: magnitude m of its argument.
        attributes: its attributes.
    """
    assert general.slope is not None
    return general.function(x, **attributes).abs() + general.slope(x) * magnitude


def _bound_along(*tensors: torch.Tensor, name: str, attributes: dict[str, Any], lipschitz: float) -> torch.Tensor:
    """Return a bound for an operator whose elements depend on many of its first input, which the largest stands for."""
    function = next(f for f in OPERATORS if f.__name__ == name)
    value = function(*tensors, **attributes).abs().nan_to_num()
    largest = max(float(tensor.abs().where(tensor.abs() < MASKED, 0).max()) for tensor in tensors)
    return value + lipschitz * largest


def sum_lengths(program: Program) -> dict[str, int]:
    """Return, for each neuron, how many terms are summed between the spikes before it and its input."""
    depth = _depths(program)
    return {str(node.target): max(depth[n] for n in node.all_input_nodes) + 1 for node in program.neurons()}


def output_sum_lengths(program: Program) -> list[int]:
    """Return, for each output, how many terms are summed between the spikes before it and its values."""
    depth = _depths(program)
    return [depth[value] + 1 for value in output_values(program.graph)]


def _depths(program: Program) -> dict[fx.Node, int]:
    """Return, for each node, how many terms are summed between the spikes before it and its value."""
    depth: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        module = program.module_of(node)
        terms_before = max((depth[n] for n in node.all_input_nodes), default=0)
        depth[node] = 0 if ops.is_neuron(module) else terms_before + _terms(program, node, module)
    return depth


def _terms(program: Program, node: fx.Node, module: nn.Module | None) -> int:
    """Return how many terms an operation adds to the sums that pass through it."""
    if ops.is_projection(module):
        return math.prod(module.weight.shape[1:]) + 1
    if ops.is_batch_norm(module):
        return 4
    if node.target is torch.matmul:
        return program.shape_of(node.all_input_nodes[0])[-1]
    if node.target in ops.REDUCTIONS:
        dims = program.type_of(node.all_input_nodes[0])
        reduced: Any = node.kwargs["dim"]
        return math.prod(axes.size(dims[dim]) for dim in reduced)
    general = operator_of(node.target)
    if general is not None:
        return general.terms(node)
    return 1 if node.target in ops.ELEMENTWISE or isinstance(module, nn.AvgPool2d) else 0


Values = TypeVar("Values", np.ndarray, torch.Tensor)


def bound(magnitude: Values, terms: int) -> Values:
    """Return the largest rounding error of values with these magnitudes.

    Args:
        magnitude: sums of the magnitudes of the terms, of any shape.
        terms: number of terms in each sum.
    """
    return LAMBDA * math.sqrt(terms) * UNIT * magnitude


def margins(
    module: nn.Module | None, current: np.ndarray, spikes: np.ndarray, magnitude: np.ndarray, terms: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each charged membrane from its nearest threshold, and how far rounding may move it.

    Args:
        module: the neuron.
        current: its input, ``[T, ...]``; any shape if the neuron has no state.
        spikes: the spikes of the reference, of that shape; the resets follow these.
        magnitude: magnitudes of ``current``, of that shape.
        terms: length of the sums behind it.

    Returns:
        ``distance, allowed``, both of that shape, float64.
    """
    neuron = dynamics_of(module)
    if not neuron.has_state:
        x = current.astype(np.float64)
        if neuron.kind == "Step":
            return abs(x - neuron.threshold), bound(magnitude.astype(np.float64) + abs(neuron.threshold), terms + 1)
        nearest = np.clip(np.floor(x), 0, neuron.max_spikes - 1) + 0.5
        return abs(x - nearest), bound(magnitude.astype(np.float64), terms + 1)
    keep, gain, threshold, rest = neuron.keep, neuron.gain, neuron.threshold, neuron.rest
    v = np.full(current.shape[1:], neuron.initial)
    m = np.full(current.shape[1:], max(abs(rest), abs(neuron.initial)))
    distance, allowed = np.empty(current.shape), np.empty(current.shape)
    for t in range(len(current)):
        h = keep * v + (1 - keep) * rest + gain * current[t].astype(np.float64)
        m = abs(keep) * m + gain * magnitude[t].astype(np.float64) + threshold
        distance[t] = _distance(neuron, h)
        allowed[t] = bound(m, terms + 4 * (t + 1))
        fired = spikes[t]
        if neuron.reset is None:
            v = h - fired * threshold
        else:
            v = np.where(fired > 0, rest, h)
    return distance, allowed


def _distance(neuron: NeuronDynamics, h: np.ndarray) -> np.ndarray:
    """Return the distance of charged membranes from the nearest threshold."""
    if not neuron.counts:
        return abs(h - neuron.threshold)
    return np.min([abs(h - (k + 0.5) * neuron.threshold) for k in range(neuron.max_spikes)], axis=0)


def step_margins(
    module: nn.Module | None, membrane: np.ndarray, current: np.ndarray, magnitude: np.ndarray, terms: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what ``margins`` does for a single step that continues with a known membrane.

    Args:
        module: the neuron, which has a membrane.
        membrane: the membrane after the step before, of any shape.
        current: the input of the step, of that shape.
        magnitude: magnitudes of ``current``, of that shape.
        terms: length of the sums behind it.
    """
    neuron, v = dynamics_of(module), membrane.astype(np.float64)
    h = neuron.keep * v + (1 - neuron.keep) * neuron.rest + neuron.gain * current.astype(np.float64)
    total = abs(neuron.keep * v) + abs((1 - neuron.keep) * neuron.rest) + neuron.gain * magnitude.astype(np.float64)
    return _distance(neuron, h), bound(total + neuron.threshold, terms + 4)
