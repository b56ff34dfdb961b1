"""Grouped convolutions sum channels: what they read stays, and is pruned only where it is 0 once it is removed."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import neuron
from torch import nn

import svitc
from support.families import warm
from svitc.passes.policies import Uniform

IMAGE = (3, 8, 8)


class Grouped(nn.Module):
    """Two convolutions of four groups, the second behind a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm1, self.lif1 = nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), neuron.LIFNode(step_mode="m")
        self.first = nn.Conv2d(16, 16, 1, groups=4)
        self.second = nn.Conv2d(16, 16, 3, 1, 1, groups=4)
        self.norm2, self.lif2 = nn.BatchNorm2d(16), neuron.LIFNode(step_mode="m")
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = x.unsqueeze(0).repeat(2, 1, 1, 1, 1)
        x = self.lif1(self.norm1(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2]))
        y = self.second(torch.sigmoid(self.first(x.flatten(0, 1))))
        return self.head(self.lif2(self.norm2(y).unflatten(0, x.shape[:2])).mean((3, 4))).mean(0)


def program() -> svitc.Program:
    torch.manual_seed(0)
    return svitc.capture(warm(Grouped(), IMAGE), torch.rand(2, *IMAGE))


def test_no_channel_that_a_grouped_convolution_reads_is_taken_for_unused():
    original = program()
    done = svitc.compile(original, budget=1.0, no_data="uniform", policy=Uniform())
    assert done.verdict.passed
    x = torch.rand(4, *IMAGE)
    assert torch.equal(done.program(x), original(x))


def test_what_is_not_zero_when_removed_is_not_summed_by_a_grouped_convolution():
    reasons = {group.name: group.frozen for group in program().groups}
    assert reasons["conv"] is None and reasons["second"] is None
    assert reasons["first"] == "an operation makes another value of its zeros"
