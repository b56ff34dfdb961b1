"""Scores that a mask sets to minus infinity do not hide the rounding of the others."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import neuron
from torch import nn

from svitc.data.inputs import random_inputs
from svitc.driver.load import check_capture, run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.onnx.export import export
from svitc.verification.float_check import verify

T, C, SIZE = 2, 16, 8


class Causal(nn.Module):
    """A convolution, attention of each pixel to those before it, and a neuron."""

    def __init__(self, filled: bool) -> None:
        super().__init__()
        self.filled = filled
        self.conv, self.norm, self.lif = nn.Conv2d(3, C, 3, 1, 1), nn.BatchNorm2d(C), neuron.LIFNode(step_mode="m")
        self.proj, self.fire, self.head = nn.Linear(C, C), neuron.LIFNode(step_mode="m"), nn.Linear(C, 5)
        self.register_buffer("mask", torch.ones(SIZE * SIZE, SIZE * SIZE).triu(1).bool())

    def forward(self, x):
        x = self.norm(self.conv(x)).unsqueeze(0).repeat(T, 1, 1, 1, 1)
        x = self.lif(x * 2).flatten(3).transpose(2, 3)
        scores = x @ x.transpose(2, 3)
        if self.filled:
            scores = scores.masked_fill(self.mask, float("-inf"))
        else:
            scores = torch.where(self.mask, torch.full_like(scores, -1e38), scores)
        return self.head(self.fire(self.proj(scores.softmax(-1) @ x) * 4).mean(2)).mean(0)


def test_causal_attention_is_verified():
    for filled in (True, False):
        torch.manual_seed(0)
        model = Causal(filled).eval()
        program = capture(model, InputSpec((3, SIZE, SIZE)))
        assert check_capture(model, program) == 0.0
        run_canonical_passes(program)
        verdict = verify(program, export(program), random_inputs(program, 8, 4, 0))
        assert verdict.passed and verdict.total("firing") > 400, verdict.first_divergence
