"""Neurons of a QDQ file: those of a float file, with a note of how their spikes form the program's array."""

from __future__ import annotations

import json

from torch import fx, nn

from svitc.ir import ops
from svitc.ir.axes import Dims, Kind
from svitc.onnx import float_rules, layout
from svitc.onnx.builder import Stored
from svitc.onnx.qdq.builder import QdqBuilder
from svitc.onnx.unrolled.lower import VIEW_KEY


def neuron(b: QdqBuilder, node: fx.Node, module: nn.Module) -> Stored:
    """Lower a neuron, with a membrane or without."""
    if ops.has_state(module):
        spikes = float_rules.spiking_neuron(b, node, module, any_order=True)
    else:
        spikes = float_rules.stateless_neuron(b, node, module)
    _describe(spikes, str(node.target))
    return spikes


def _describe(spikes: Stored, path: str) -> None:
    """Record in the metadata of the node that gives a neuron's spikes how they form the program's array.

    As in a file with one value for each step (unrolled/lower.py), but here one value has the spikes of all steps.
    """
    letters = {id(token): f"a{i}" for i, token in enumerate(layout.flat(spikes.view))}
    sizes = {letters[id(token)]: token.size for token in layout.flat(spikes.view) if token.kind != Kind.BATCH}

    def side(dims: Dims) -> str:
        return " ".join("(" + " ".join(letters[id(token)] for token in dim) + ")" for dim in dims)

    assert spikes.value is not None
    node = spikes.value.producer()
    assert node is not None
    pattern = f"() {side(spikes.dims)} -> {side(spikes.view)}"  # of a stack of one value
    node.metadata_props[VIEW_KEY] = json.dumps(
        {"path": path, "pattern": pattern, "sizes": sizes, "values": [spikes.value.name]}
    )


__all__ = ["neuron"]
