"""Neurons whose threshold or decay is a tensor over channels: pruned, and exact in int8 files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from support.masked import masked, pruned
from support.plans import random_plan
from support.serialized import assert_same, reload
from svitc.analysis.exactness import inexact
from svitc.data.inputs import random_inputs
from svitc.driver.load import check_capture, run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.onnx.export import export
from svitc.passes.pipelines import quantize
from svitc.verification.exact_check import verify_exact

T, C, SIZE = 4, 16, 8


class Written(nn.Module):
    """A leaky neuron with parameters ``[C, 1, 1]``.

    Args:
        soft: Whether a spike subtracts the threshold instead of setting the membrane to 0.
        learned: Whether the decay is the sigmoid of a parameter.
        lowest: Lowest threshold.
    """

    def __init__(self, soft: bool = False, learned: bool = False, lowest: float = 0.3) -> None:
        super().__init__()
        self.soft = soft
        self.threshold = nn.Parameter(torch.rand(C, 1, 1) + lowest)
        self.decay = nn.Parameter(torch.randn(C, 1, 1)) if learned else None

    def forward(self, x):
        v, spikes = torch.zeros_like(x[0]), []
        keep = 0.5 if self.decay is None else self.decay.sigmoid()
        for current in x:
            v = v * keep + current
            spikes.append((v >= self.threshold).float())
            v = v - spikes[-1] * self.threshold if self.soft else v * (1 - spikes[-1])
        return torch.stack(spikes)


def plif() -> neuron.ParametricLIFNode:
    node = neuron.ParametricLIFNode(step_mode="m", v_threshold=0.3)
    node.w = nn.Parameter(torch.randn(C, 1, 1))
    return node


class Net(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.conv1, self.norm1, self.neuron1 = nn.Conv2d(3, C, 3, 1, 1), nn.BatchNorm2d(C), make()
        self.conv2, self.norm2, self.neuron2 = nn.Conv2d(C, C, 3, 1, 1), nn.BatchNorm2d(C), make()
        self.head = nn.Linear(C, 5)

    def forward(self, x):
        x = x.unsqueeze(0).repeat(T, 1, 1, 1, 1)
        t, n = x.shape[:2]
        x = self.neuron1(self.norm1(self.conv1(x.flatten(0, 1))).unflatten(0, (t, n)))
        x = self.neuron2(self.norm2(self.conv2(x.flatten(0, 1))).unflatten(0, (t, n)))
        return self.head(x.sum((3, 4))).mean(0)


NEURONS = {
    "hard reset": Written,
    "soft reset": lambda: Written(soft=True),
    "learned decay": lambda: Written(soft=True, learned=True),
    "PLIF": plif,
}
each = pytest.mark.parametrize("name", NEURONS)


def program_of(make):
    torch.manual_seed(0)
    model = Net(make).eval()
    program = capture(model, InputSpec((3, SIZE, SIZE)))
    assert check_capture(model, program) == 0.0
    run_canonical_passes(program)
    return program


@each
def test_channels_are_pruned_and_pruned_is_masked(name):
    program = program_of(NEURONS[name])
    free = {group.name for group in program.groups if group.frozen is None}
    assert free == {"conv1", "conv2"}
    plan = random_plan(program, np.random.default_rng(1))
    x = torch.randn(4, 3, SIZE, SIZE, dtype=torch.float64) * 2
    small = pruned(program, plan)
    assert sum(p.numel() for p in small.module.parameters()) < sum(p.numel() for p in program.module.parameters())
    want = masked(program, plan)(x)
    assert (small(x) - want).abs().max() < 1e-9 and want.std() > 0


@each
def test_int8_spikes_are_exact_with_pruned_channels_too(name, tmp_path):
    program = program_of(NEURONS[name])
    plan = random_plan(program, np.random.default_rng(1))
    for number, variant in enumerate((program, pruned(program, plan))):
        variant.module.float()
        small = quantize(variant.copy())[0]
        assert set(inexact(small)) <= {"logits"}, "every neuron is exact"
        verdict = verify_exact(small, export(small), random_inputs(small, 3, 2, 0))
        assert verdict.passed and verdict.total("firing") > 200, verdict.to_json()
        folder = tmp_path / str(number)
        folder.mkdir()
        assert_same(small, reload(small, folder))


def test_a_threshold_that_fires_without_input_keeps_its_channels():
    program = program_of(lambda: Written(lowest=-0.1))
    frozen = {group.name: group.frozen for group in program.groups if group.frozen}
    assert {"conv1", "conv2"} <= set(frozen)
    assert np.all([program.module.get_parameter(f"neuron{i}.threshold").min() <= 0 for i in (1, 2)])
