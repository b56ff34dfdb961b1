"""Choose which input currents are scaled by a power of two at each time step, so that neurons need fewer operations.

How a neuron uses such a current is described in neuron_functions.py. After ``PERIOD`` steps the powers start again:
2^128 is no float32, and steps of equal powers share thresholds and biases.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import NamedTuple

from torch import fx, nn

from svitc.analysis.input_current import Current, by_number, current_of
from svitc.analysis.integer_range import integer_ranges
from svitc.ir import ops
from svitc.ir.axes import Kind
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.program import Program

PERIOD = 16  # steps; far below 128, since a factor multiplies sums that are large themselves


def step_gains(program: Program, whole: AbstractSet[fx.Node] = frozenset()) -> dict[fx.Node, int]:
    """Return the gain of quantized layers and of products with a number: 1, -1, or 0 for nodes that are missing.

    Args:
        program: the quantized program.
        whole: nodes that are lowered on all steps at once, where no step has a factor of its own.

    With gain 1, step t is emitted times 2^(t mod PERIOD); with gain -1, times its negative. All nodes that add up to
    one current have the same gain. It is not 0 if only neurons of time constant 2 read the current: they need not halve
    their membranes then. It is -1 if, moreover, these neurons have a hard reset, which is one operation for negative
    membranes, and no maximum is taken of the current. If a maximum is taken before anything else is added, the max pool
    itself has gain -1: it changes the sign.
    """
    gains: dict[fx.Node, int] = {}
    ranges = integer_ranges(program)
    for node in program.neurons():
        if not halves_membrane(program, node):
            continue
        current = current_of(program, node, ranges)
        layers = [program.module_of(source) for source in current.sources]
        if (
            current.blocked is None
            and not current.bare
            and all(by_number(user) for _, user in current.exits)
            and all(halves_membrane(program, reader) for reader in current.readers)
            and all(_has_time(program, source) for source in current.sources)
            and all(value not in whole and whole.isdisjoint(value.users) for value in current.values)
            and all(layer is None or ops.is_quantized(layer) for layer in layers)
        ):
            hard_reset = all(dynamics_of(program.module_of(neuron)).reset is not None for neuron in current.readers)
            gains.update(_signs(program, current) if hard_reset else dict.fromkeys(current.sources, 1))
    return gains


def _signs(program: Program, current: Current) -> dict[fx.Node, int]:
    """Return the gains of a current's sources, and of max pools that change the sign, for hard-reset neurons.

    A maximum commutes with positive factors only, so what is added before a max pool keeps the gain 1.
    """
    pools = [value for value in current.values if isinstance(program.module_of(value), nn.MaxPool2d)]
    before: set[fx.Node] = set()
    todo = [source for pool in pools for source in pool.all_input_nodes]
    while todo:
        node = todo.pop()
        if node not in before and node in current.values:
            before.add(node)
            todo += [] if node in current.sources else node.all_input_nodes
    only_pooled = all(user in before or user in pools for node in before for user in node.users)
    late = [source for source in current.sources if source not in before]
    if pools and not (only_pooled and late):  # changing the sign costs a node, which pays only if more is added later
        return dict.fromkeys(current.sources, 1)
    return dict.fromkeys(before & set(current.sources), 1) | dict.fromkeys(late, -1) | dict.fromkeys(pools, -1)


def factor(gain: int, t: int) -> float:
    """Return the scale factor applied at time step ``t``, counted from 0."""
    return gain * 2.0 ** (t % PERIOD) if gain else 1.0


class StepScale(NamedTuple):
    """The scale at which a product of one time step is emitted.

    Attributes:
        factor: what the product is multiplied by.
        repetition: how many steps before had the same factor because the powers started again.
    """

    factor: float = 1.0
    repetition: int = 0

    @classmethod
    def at(cls, gain: int, t: int) -> StepScale:
        """Return the scale at time step ``t``, counted from 0, of a node with a gain."""
        return cls(factor(gain, t), t // PERIOD if gain else 0)


def halves_membrane(program: Program, node: fx.Node) -> bool:
    """Return whether a neuron's membrane loses half of itself at every step and nothing else scales it."""
    module = program.module_of(node)
    if not ops.has_state(module):
        return False
    neuron = dynamics_of(module)
    return neuron.kind == "LIF" and neuron.tau == 2 and not neuron.decay_input and neuron.is_normalized


def _has_time(program: Program, node: fx.Node) -> bool:
    """Return whether a node's value has a time axis."""
    return any(axis.kind == Kind.TIME for dim in program.type_of(node) for axis in dim)
