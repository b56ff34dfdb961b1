"""Membranes that a model reads: of the last step, of every step, and as the output of a neuron that never fires."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from svitc.driver.load import check_capture
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.graph import InputSpec

T = 3


class Net(nn.Module):
    """A convolution, a neuron, and a head on what a function returns."""

    def __init__(self, read, **parameters) -> None:
        super().__init__()
        self.read, self.conv = read, nn.Conv2d(3, 8, 3, 1, 1)
        self.first, self.lif = neuron.LIFNode(step_mode="m"), neuron.LIFNode(step_mode="m", **parameters)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.first(self.conv(x).unsqueeze(0).repeat(T, 1, 1, 1, 1) * 3)
        return self.head(self.read(self, x).mean((-2, -1)))


def last(net, x):
    return net.lif(x)[0] + net.lif.v


def readout(net, x):
    net.lif(x)
    return net.lif.v


def steps(net, x):
    net.lif(x)
    return torch.stack([v * 0.5 for v in net.lif.v_seq]).mean(0)


def passed(net, x):
    net.lif(x)
    return torch.relu(net.lif.v)


CASES = {
    "last": (last, {}),
    "readout": (readout, {"v_threshold": 1e9}),
    "steps": (steps, {"store_v_seq": True}),
    "passed": (passed, {"v_reset": None}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_membrane_that_is_read_is_exact(name):
    torch.manual_seed(0)
    read, parameters = CASES[name]
    model = Net(read, **parameters).eval()
    program = capture(model, InputSpec((3, 8, 6)))
    assert check_capture(model, program) == 0.0
    whole = [str(node.target) for node in program.neurons() if ops.has_state(program.module_of(node))]
    assert whole == ["first"]
    assert model.lif.v == 0.0 and model.first.v == 0.0


def test_a_neuron_whose_membrane_is_not_read_stays_one_operation():
    torch.manual_seed(0)
    model = Net(lambda net, x: net.lif(x)[0]).eval()
    program = capture(model, InputSpec((3, 8, 6)))
    assert [str(node.target) for node in program.neurons()] == ["first", "lif"]
