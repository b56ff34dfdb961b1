"""Neurons of SpikingJelly that have no canonical form are traced through, exactly, and leave no trace in the model."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from support.written_neurons import Net
from svitc.driver.load import check_capture
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.operators.time import mix_steps

T = 3
IMAGE = InputSpec((3, 8, 6))
KINDS = {
    "QIF": lambda: neuron.QIFNode(step_mode="m"),
    "QIF, soft reset": lambda: neuron.QIFNode(v_reset=None, step_mode="m"),
    "EIF": lambda: neuron.EIFNode(step_mode="m"),
    "Izhikevich": lambda: neuron.IzhikevichNode(a=0.1, b=0.2, step_mode="m"),
    "KLIF": lambda: neuron.KLIFNode(step_mode="m"),
    "GLIF": lambda: neuron.GatedLIFNode(T),
    "GLIF, by channel": lambda: neuron.GatedLIFNode(T, inplane=8),
    "PSN": lambda: neuron.PSN(T),
    "masked PSN": lambda: neuron.MaskedPSN(2, T, 1.0, step_mode="m"),
    "sliding PSN": lambda: neuron.SlidingPSN(2, step_mode="m"),
    "DSR IF": lambda: neuron.DSRIFNode(T, v_threshold=1.0),
    "DSR LIF": lambda: neuron.DSRLIFNode(T, v_threshold=0.1),
    "CLIF": lambda: neuron.ComplementaryLIFNode(step_mode="m"),
    "STBIF": lambda: neuron.STBIFNode(0.5, 8, step_mode="m"),
    "ternary LIF": lambda: neuron.TernaryLIFNode(step_mode="m"),
    "resonate and fire": lambda: neuron.RAFNode(step_mode="m"),
    "half of the threshold": lambda: neuron.HalfThresholdIFNode(step_mode="m"),
    "threshold by channel": lambda: neuron.ActivationAwareIFNode(
        torch.linspace(0.5, 1.5, 8), channel_dim=1, step_mode="m"
    ),
    "MPBN": lambda: neuron.MPBNLIFNode(step_mode="m", out_channels=8),
}


def alive(kind):
    """A model whose neurons fire, and a negative bias of PSN does not keep them silent."""
    torch.manual_seed(0)
    spiking = kind()
    if hasattr(spiking, "bias"):
        nn.init.constant_(spiking.bias, -0.3)
    model = Net(spiking, T, depth=1).eval()
    model.spiking = spiking
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_neuron_is_traced_exactly(kind):
    model = alive(KINDS[kind])
    program = capture(model, IMAGE)
    assert check_capture(model, program) == 0.0
    assert program(torch.randn(2, 3, 8, 6)).std() > 1e-3
    for module in model.modules():
        memories = getattr(module, "_memories", {})
        assert not any(isinstance(value, torch.fx.Proxy) for value in (*vars(module).values(), *memories.values()))
    functional.reset_net(model)
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(2, 3, 8, 6))).all()


def test_parallel_neurons_mix_time_steps():
    program = capture(alive(KINDS["PSN"]), IMAGE)
    assert [node.target for node in program.graph.nodes].count(mix_steps) == 1
    (group,) = [g for g in program.groups if g.name == "convs.0"]
    assert group.frozen is not None, "a bias makes channels fire that are 0"


def test_neurons_with_one_spike_each_step_keep_their_channels_prunable():
    program = capture(alive(KINDS["QIF, soft reset"]), IMAGE)
    assert [g.frozen for g in program.groups if g.name == "convs.0"] == [None]
