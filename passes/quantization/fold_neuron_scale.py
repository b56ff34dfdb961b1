"""FoldNeuronScale: folds the factor of a neuron's input current into the layers that produce the current."""

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

    A membrane that starts elsewhere than at rest starts at the u of that voltage.

    All layers whose outputs add up to one current are scaled together, and so are all neurons that read it (a membrane
    shortcut); any other reader gets the unscaled value. The result is equal up to rounding, and exact where the factor
    is a power of two.

    Refuses
      1. a current to which a parameter or the result of a nonlinear operation is added;
      2. neurons that read one current and need different factors;
      3. a neuron that counts (ILIF); one that is plain already stays as it is.
    """

    name = "FoldLeak"  # the old name of this pass, which reports keep
    requires = (Stage.INFERENCE, Stage.INFERENCE)

    def apply(self, program: Program) -> PassResult:
        result = PassResult(self.name)
        handled: set[fx.Node] = set()
        ranges = integer_ranges(program)
        for node in list(program.neurons()):
            if node in handled or not ops.has_state(program.module_of(node)):
                continue
            current = current_of(program, node, ranges)
            handled.update(current.readers)
            neurons = [dynamics_of(program.module_of(neuron)) for neuron in current.readers]
            factors = {_factor(neuron) for neuron in neurons}
            names = [str(reader.target) for reader in current.readers]
            reason = current.blocked
            if len(factors) > 1:
                reason = "neurons that read one current need different factors"
            elif None in factors:
                reason = "it counts spikes"
            if reason is not None:
                result.refused.update(dict.fromkeys(names, reason))
                continue
            factor: Any = next(iter(factors))
            if all(neuron.is_normalized and neuron.gain == 1 for neuron in neurons):
                continue
            if factor != 1:
                self._scale(program, current, factor)
            for reader in current.readers:
                _normalize(program.module_of(reader))
            result.changed += names
        return result

    def _scale(self, program: Program, current: Current, factor: float) -> None:
        """Multiply every source of a current by a factor, and divide by it for every other reader."""
        for value, user in current.exits:
            user.replace_input_with(value, _product(program, value, 1 / factor))
        for source in current.sources:
            _scale(program, source, factor)
        unscaled_inputs = {*current.bare, *current.sources}  # these keep reading unscaled values
        members = {value for value in current.values if value not in unscaled_inputs}
        for value in current.bare:
            users = [user for user in value.users if user in members or user in current.readers]
            scaled = _product(program, value, factor)
            for user in users:
                user.replace_input_with(value, scaled)


def _factor(neuron: NeuronDynamics) -> float | None:
    """Return the factor to fold into a neuron's input, or None where there is none."""
    if neuron.counts:
        return None
    factor = 1 / (neuron.threshold - neuron.rest)
    if neuron.factors is not None:
        factor *= neuron.gain
    elif neuron.decay_input:
        factor *= float(neuron.float32_rate) if neuron.learned is not None else neuron.rate
    return factor


def _product(program: Program, value: fx.Node, number: float) -> fx.Node:
    """Return a new node that multiplies a value by a number."""
    with program.graph.inserting_after(value):
        product = program.graph.call_function(operator.mul, (value, number))
    product.meta.update({key: value.meta[key] for key in ("source", "scope", "dims") if key in value.meta})
    return product


def _normalize(module: Any) -> None:
    """Set the threshold of a neuron to 1, its reset voltage to 0 and the factor of its input to 1."""
    if isinstance(module, ops.LeakyNeuron):
        module.threshold = module.gain = 1.0
        return
    neuron = dynamics_of(module)
    start = (neuron.initial - neuron.rest) / (neuron.threshold - neuron.rest)
    module.v_threshold = 1.0
    module.v_reset = None if module.v_reset is None else 0.0
    if hasattr(module, "decay_input"):
        module.decay_input = False
    module.set_reset_value("v", start)
    module.reset()


def _scale(program: Program, node: fx.Node, factor: float) -> None:
    """Multiply the weights of a layer, or the number of a product, by a factor."""
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
        scaled = copy.deepcopy(layer)
        set_weights(scaled, layer.weight.double() * factor, bias.double() * factor)
        program.module.get_submodule(owner).add_module(name, scaled)


__all__ = ["FoldNeuronScale"]
