"""Neurons of a QDQ file: those of a float file, with a note of how their spikes form the program's array."""

from __future__ import annotations

from torch import fx, nn

from svitc.ir import ops
from svitc.onnx import neuron_rules
from svitc.onnx.builder import Stored
from svitc.onnx.qdq.builder import QdqBuilder
from svitc.onnx.spike_views import describe_stored


def neuron(b: QdqBuilder, node: fx.Node, module: nn.Module) -> Stored:
    """Lower a neuron, with a membrane or without."""
    if ops.has_state(module):
        spikes = neuron_rules.spiking_neuron(b, node, module, any_order=True)
    else:
        spikes = neuron_rules.stateless_neuron(b, node, module)
    describe_stored(spikes, str(node.target))
    return spikes


__all__ = ["neuron"]
