"""The order of a streaming file's nodes: each layer's membrane is read and written while the layer is computed.

ONNX Runtime orders nodes depth first, from those that no other node reads. It begins with the one that is latest in the
file, and computes of a node's inputs the one that is latest first. In the order of the program it would compute the
class scores first and keep every membrane of the network until then, to reset all of them at the end, when none is in
the processor's cache any more. Nodes that ONNX Runtime makes of several are later than all in the file, so class scores
must not come from such a node.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from svitc.onnx.states import State


def in_step_order(nodes: Sequence[ir.Node], states: Sequence[State], outputs: Sequence[ir.Value]) -> list[ir.Node]:
    """Return the nodes in the order in which ONNX Runtime finishes one layer's state before the next layer.

    What is computed from states alone comes first in the file, so that the current that meets it is computed earlier.
    What serves one state after the step and nothing else comes last, the first layer's at the very end. The time is
    linear in the number of nodes.

    Args:
        nodes: the nodes, each behind those that it reads.
        states: the states in the order of their layers.
        outputs: the file's other outputs.
    """
    leads = _from_states(nodes, states)
    closing: list[list[ir.Node]] = [[] for _ in states]
    body: list[ir.Node] = []
    owners = _owners(nodes, states, outputs)
    for node in nodes:
        owner = owners[node]
        if node in leads:
            continue
        (body if owner is None else closing[owner]).append(node)
    return [*(node for node in nodes if node in leads), *body, *(node for group in closing[::-1] for node in group)]


def may_be_joined(value: ir.Value) -> bool:
    """Return whether ONNX Runtime may make one node of the one that gives a value and those before it."""
    producer = value.producer()
    return producer is not None and producer.op_type in ("Add", "Conv", "Gemm", "MatMul")


def _from_states(nodes: Sequence[ir.Node], states: Sequence[State]) -> set[ir.Node]:
    """Return the nodes that read states and constants alone."""
    found: set[ir.Node] = set()
    known = {state.before for state in states}
    for node in nodes:
        read = [value for value in node.inputs if value is not None and value.const_value is None]
        if read and known.issuperset(read):
            found.add(node)
            known.update(node.outputs)
    return found


def _owners(
    nodes: Sequence[ir.Node], states: Sequence[State], outputs: Sequence[ir.Value]
) -> dict[ir.Node, int | None]:
    """Return for each node the state, by its place, that alone needs it after the step; None where there is no such."""
    given = {id(state.after): i for i, state in enumerate(states)}
    owners: dict[ir.Node, int | None] = {}
    for node in reversed(nodes):
        needed = {owners[reader] for value in node.outputs for reader, _ in value.uses()}
        needed |= {given[id(value)] for value in node.outputs if id(value) in given}
        needed |= {None for value in node.outputs if any(value is output for output in outputs)}
        owners[node] = needed.pop() if len(needed) == 1 else None
    return owners


__all__ = ["in_step_order", "may_be_joined"]
