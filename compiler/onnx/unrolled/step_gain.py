"""Which currents are emitted at other scales, so that neurons need fewer operations (neuron_functions.py)."""

from __future__ import annotations

from torch import fx, nn

from svitc.analysis.input_current import Current, by_number, current_of
from svitc.analysis.integer_range import integer_ranges
from svitc.ir import ops
from svitc.ir.axes import Kind
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.program import Program


def step_gains(program: Program) -> dict[fx.Node, int]:
    """The gain of quantized layers and products with a number: 1, -1, or, where missing, 0.

    A gain of 1: step t is emitted times 2^t, -1: times -2^t. All that adds to one current has the same. It is not 0
    where only neurons of time constant 2 read the current: no membrane has to be halved then. It is -1 where, besides,
    no maximum is taken of it: a hard reset of negative membranes is one operation. A pool of which the maximum is taken
    before anything else is added has the gain -1 itself: it turns the sign.
    """
    found: dict[fx.Node, int] = {}
    known = integer_ranges(program)
    for node in program.neurons():
        if not halves(program, node):
            continue
        current = current_of(program, node, known)
        layers = [program.module_of(each) for each in current.sources]
        if (
            current.blocked is None
            and not current.bare
            and all(by_number(user) for _, user in current.exits)
            and all(halves(program, each) for each in current.readers)
            and all(_timed(program, each) for each in current.sources)
            and all(layer is None or ops.is_quantized(layer) for layer in layers)
        ):
            hard = all(dynamics_of(program.module_of(neuron)).reset is not None for neuron in current.readers)
            found.update(_signs(program, current) if hard else dict.fromkeys(current.sources, 1))
    return found


def _signs(program: Program, current: Current) -> dict[fx.Node, int]:
    """Of the sources, and of pools that turn the sign."""
    pools = [each for each in current.values if isinstance(program.module_of(each), nn.MaxPool2d)]
    before: set[fx.Node] = set()
    todo = [source for pool in pools for source in pool.all_input_nodes]
    while todo:
        node = todo.pop()
        if node not in before and node in current.values:
            before.add(node)
            todo += [] if node in current.sources else node.all_input_nodes
    alone = all(user in before or user in pools for node in before for user in node.users)
    late = [each for each in current.sources if each not in before]
    if pools and not (alone and late):  # turning the sign pays only where more is added behind the pool
        return dict.fromkeys(current.sources, 1)
    return dict.fromkeys(before & set(current.sources), 1) | dict.fromkeys(late, -1) | dict.fromkeys(pools, -1)


def factor(gain: int, t: int) -> float:
    """What step t is emitted times."""
    return gain * 2.0**t if gain else 1.0


def halves(program: Program, node: fx.Node) -> bool:
    """Whether a neuron's membrane loses half of itself at every step, and nothing else scales it."""
    module = program.module_of(node)
    if not ops.has_state(module):
        return False
    neuron = dynamics_of(module)
    return neuron.kind == "LIF" and neuron.tau == 2 and not neuron.decay_input and neuron.is_normalized


def _timed(program: Program, node: fx.Node) -> bool:
    return any(axis.kind == Kind.TIME for dim in program.type_of(node) for axis in dim)
