"""FoldNeuronScale: what a neuron does to its input current goes into the layers that make the current."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import fx

from svitc.analysis.input_current import Current, current_of
from svitc.analysis.integer_range import integer_ranges
from svitc.ir import ops
from svitc.ir.batch_norm import set_weights
from svitc.ir.neuron_dynamics import NeuronDynamics, dynamics_of
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage


class FoldNeuronScale(Pass):
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

    name = "FoldLeak"  # in reports, which keep the name that they began with
    requires = (Stage.INFERENCE, Stage.INFERENCE)

    def apply(self, program: Program) -> PassResult:
        result = PassResult(self.name)
        done: set[fx.Node] = set()
        known = integer_ranges(program)
        for node in list(program.neurons()):
            if node in done or not ops.has_state(program.module_of(node)):
                continue
            current = current_of(program, node, known)
            done.update(current.readers)
            neurons = [dynamics_of(program.module_of(neuron)) for neuron in current.readers]
            needs = {_need(each) for each in neurons}
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
            if all(each.is_normalized and not each.decay_input for each in neurons):
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


def _need(neuron: NeuronDynamics) -> float | None:
    """Return the factor by which a neuron's input has to be multiplied, or None where it cannot be."""
    if neuron.counts:
        return None
    factor = 1 / (neuron.threshold - neuron.rest)
    if neuron.decay_input:
        factor *= float(neuron.float32_rate) if neuron.learned is not None else neuron.rate
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


__all__ = ["FoldNeuronScale"]
