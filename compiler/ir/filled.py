"""Removed channels that are not 0: after ``1 - x`` or a sigmoid, a channel that never fires has another value than 0.

Pruning removes a channel that its producers leave at 0. Where an operation makes another value of this 0, the channel
counts for whatever sums over it, so that it must stay. A product with a value that is 0 there is 0 again.
"""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from svitc.ir import ops
from svitc.ir.axes import Axis, Dim, Kind
from svitc.ir.graph import type_of
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.operators.registry import operator_of

REASON = "an operation makes another value of its zeros"


def track(node: fx.Node, module: nn.Module | None) -> None:
    """Store in ``node.meta["filled"]`` the channel axes along which removed channels are not 0.

    Axes whose channels would be missing from a sum are frozen.

    Args:
        node: a node with a type.
        module: the layer that it calls, or None.
    """
    node.meta.pop("filled", None)
    sources = [set(_filled(source)) for source in node.all_input_nodes]
    general = operator_of(node.target)
    if not any(sources) and general is None and not _fires_without_input(module):
        return
    filled: set[Axis] = set().union(*sources)
    if (general is not None and general.is_filling(node)) or _fires_without_input(module):
        filled |= {axis for dim in type_of(node) for axis in dim if axis.kind == Kind.CHANNEL}
    if ops.is_projection(module) and getattr(module, "groups", 1) == 1:  # a depthwise convolution sums no channels
        x = type_of(node.all_input_nodes[0])
        _freeze(filled, x[-1] if isinstance(module, nn.Linear) else x[1])
        filled = set()
    elif node.target is torch.matmul:
        left, right = type_of(node.all_input_nodes[0]), type_of(node.all_input_nodes[-1])
        _freeze(sources[0] & sources[-1], left[-1], right[-2])
    elif node.target in ops.REDUCTIONS:
        reduced = node.kwargs["dim"]
        _freeze(filled, *(type_of(node.all_input_nodes[0])[i] for i in reduced))  # type: ignore[union-attr, index, misc]
    elif node.target is operator.mul and len(sources) == 2:
        filled = sources[0] & sources[1]
    present = {id(axis) for dim in type_of(node) for axis in dim}
    node.meta["filled"] = tuple(axis for axis in filled if id(axis) in present)


def _filled(node: fx.Node) -> tuple[Axis, ...]:
    """Return the leaf axes of a value along which removed channels are not 0."""
    return tuple(leaf for axis in node.meta.get("filled", ()) for leaf in axis.leaves())


def _fires_without_input(module: nn.Module | None) -> bool:
    """Return whether a layer is a neuron that makes a spike of 0."""
    if ops.has_state(module):
        return dynamics_of(module).fires_without_input
    return isinstance(module, ops.STATELESS_NEURONS) and bool(module(torch.zeros(1)).ne(0).any())


def _freeze(filled: set[Axis], *dims: Dim) -> None:
    """Freeze the axes of these dimensions that are filled."""
    for dim in dims:
        for axis in dim:
            if axis in filled:
                axis.freeze(REASON)
