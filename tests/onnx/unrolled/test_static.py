"""Static images that are repeated before layers which the repetition cannot be moved behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

import svitc
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.onnx.export import export
from svitc.passes.pipelines import quantize
from svitc.verification.exact_check import verify_exact


class Net(nn.Module):
    """A batch norm of the image itself, whose result has another reader than the first layer."""

    def __init__(self, first: Callable[[torch.Tensor], torch.Tensor], tau: float = 2.0) -> None:
        super().__init__()
        self.norm, self.first = nn.BatchNorm2d(3), first
        self.conv = layer.Conv2d(3, 8, 3, 1, 1, step_mode="m")
        self.spike = neuron.LIFNode(tau, decay_input=False, v_threshold=0.4, step_mode="m")
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.norm(x).unsqueeze(0).repeat(4, 1, 1, 1, 1))
        y = self.spike(self.conv(x))
        return self.head(y.mean((3, 4)) + x.mean((2, 3, 4)).unsqueeze(2)).mean(0)


CASES = {
    "real numbers, rounded for the layer": lambda x: x,
    "integer spikes": lambda x: x.clamp(0, 4).round(),
    "a comparison": lambda x: (x > 0.25).float(),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tau", [2.0, 3.0])
def test_spikes_are_the_references(name, tau):
    torch.manual_seed(0)
    program = capture(Net(CASES[name], tau).eval(), svitc.InputSpec((3, 8, 8)))
    run_canonical_passes(program)
    twin = quantize(program)[0]
    verdict = verify_exact(twin, export(twin), random_inputs(program, 4, 2, 0), original=program)
    assert verdict.passed, verdict.to_json()
    assert not verdict.to_json()["silent_neurons"]
