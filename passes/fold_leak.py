"""FoldLeak: what a neuron does to its input current goes into the layers that make the current."""

from __future__ import annotations

import copy
import operator
from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based import neuron
from torch import fx, nn

from svitc.grid import Grid, grids
from svitc.ir import ops
from svitc.ir.batch_norm import set_weights
from svitc.ir.graph import describe
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage

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


def current_of(program: Program, start: fx.Node, known: dict[fx.Node, Grid]) -> Current:
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


class FoldLeak(Pass):
    """Fold a neuron's input factor, its reset voltage and its threshold into the layers before it.

    before   x -> conv -> LIF(tau, threshold, reset), h = v + (x - (v - reset)) / tau
    after    x -> conv' -> LIF(tau, threshold 1, reset 0), h = v - v / tau + x'

        u = (v - reset) / (threshold - reset),   x' = x / tau / (threshold - reset)

    All layers that add to one current are scaled together, and so are all neurons that read it (a membrane
    shortcut); whatever else reads it gets it back as it was. Equal but for rounding, and exact where the factor is a
    power of two.

    Refuses
      1. a current to which a parameter or a result of something nonlinear is added;
      2. neurons that read one current and need different factors;
      3. a neuron that counts (ILIF); one that is plain already is left as it is.
    """

    requires = (Stage.INFERENCE, Stage.INFERENCE)

    def apply(self, program: Program) -> PassResult:
        result = PassResult(self.name)
        done: set[fx.Node] = set()
        known = grids(program)
        for node in list(program.neurons()):
            if node in done or not ops.has_state(program.module_of(node)):
                continue
            current = current_of(program, node, known)
            done.update(current.readers)
            needs = {_need(program.module_of(each)) for each in current.readers}
            names = [str(each.target) for each in current.readers]
            reason = current.blocked
            if len(needs) > 1:
                reason = "neurons that read one current need different factors"
            elif None in needs:
                reason = "it counts spikes"
            if reason is not None:
                result.refused.update(dict.fromkeys(names, reason))
                continue
            need: Any = next(iter(needs))
            if self._plain(program, current):
                continue
            if need != 1:
                self._scale(program, current, need)
            for each in current.readers:
                _plainer(program.module_of(each))
            result.changed += names
        return result

    def _scale(self, program: Program, current: Current, need: float) -> None:
        """Every source times ``need``, every other reader over it."""
        for value, user in current.exits:
            user.replace_input_with(value, _product(program, value, 1 / need))
        for each in current.sources:
            _scale(program, each, need)
        whole = {*current.bare, *current.sources}  # these read values as they were
        members = {value for value in current.values if value not in whole}
        for each in current.bare:
            users = [user for user in each.users if user in members or user in current.readers]
            scaled = _product(program, each, need)
            for user in users:
                user.replace_input_with(each, scaled)

    def _plain(self, program: Program, current: Current) -> bool:
        modules: list[Any] = [program.module_of(each) for each in current.readers]
        return all(m.v_threshold == 1 and not m.v_reset and not getattr(m, "decay_input", False) for m in modules)


def _need(module: Any) -> float | None:
    """By how much the input of a neuron has to be multiplied, or None."""
    if isinstance(module, neuron.ILIFNode):
        return None
    factor = 1 / (module.v_threshold - (module.v_reset or 0.0))
    if getattr(module, "decay_input", False):
        factor *= float(module.w.detach().float().sigmoid()) if hasattr(module, "w") else 1 / module.tau
    return factor


def _product(program: Program, value: fx.Node, number: float) -> fx.Node:
    with program.graph.inserting_after(value):
        made = program.graph.call_function(operator.mul, (value, number))
    made.meta.update({key: value.meta[key] for key in ("source", "scope", "dims") if key in value.meta})
    return made


def _plainer(module: Any) -> None:
    module.v_threshold = 1.0
    module.v_reset = None if module.v_reset is None else 0.0
    if hasattr(module, "decay_input"):
        module.decay_input = False
    module.set_reset_value("v", 0.0)  # where the membrane starts
    module.reset()


def _scale(program: Program, node: fx.Node, factor: float) -> None:
    layer: Any = program.module_of(node)
    if layer is None:
        left, right = node.args
        number: Any = left if isinstance(right, fx.Node) else right
        node.target, value = operator.mul, 1 / number if node.target is operator.truediv else number
        node.args = (node.all_input_nodes[0], value * factor)
        return
    with torch.no_grad():
        bias = torch.zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias
        owner, _, name = str(node.target).rpartition(".")
        own = copy.deepcopy(layer)
        set_weights(own, layer.weight.double() * factor, bias.double() * factor)
        program.module.get_submodule(owner).add_module(name, own)


__all__ = ["Current", "FoldLeak", "by_number", "current_of"]
