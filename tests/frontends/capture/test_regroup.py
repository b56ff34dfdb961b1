"""Reshapes and sums that axes do not explain are kept, and what they touch is not pruned."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from spikingjelly.activation_based import neuron
from torch import nn

from support.families import warm
from svitc.driver.compile import compile as compile_program
from svitc.driver.inspect import opaque
from svitc.driver.load import check_capture, load, run_canonical_passes
from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.operators.regroup import at_steps, regroup
from svitc.passes.policies import Uniform

T, C, SIZE = 2, 16, 8


class Net(nn.Module):
    """Two convolutions with neurons, and a function of spikes ``[T, N, C, H, W]`` between them."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.conv1, self.norm1, self.lif1 = nn.Conv2d(3, C, 3, 1, 1), nn.BatchNorm2d(C), neuron.LIFNode(step_mode="m")
        self.conv2, self.norm2, self.lif2 = nn.Conv2d(C, C, 3, 1, 1), nn.BatchNorm2d(C), neuron.LIFNode(step_mode="m")
        self.head = nn.Linear(C, 5)

    def forward(self, x):
        x = x.unsqueeze(0).repeat(T, 1, 1, 1, 1)
        t, n = x.shape[:2]
        x = self.norm1(self.conv1(x.flatten(0, 1)))
        x = self.function(self.lif1(x.reshape(t, n, *x.shape[1:])))
        x = self.norm2(self.conv2(x.flatten(0, 1)))
        x = self.lif2(x.reshape(t, n, *x.shape[1:]))
        return self.head(x.flatten(3).mean(3)).mean(0)


def windows_joined_with_the_batch(x):
    t, n, c, h, w = x.shape
    y = x.reshape(t, n, c, h // 2, 2, w // 2, 2).permute(0, 1, 4, 6, 2, 3, 5).reshape(t, -1, c, h // 2, w // 2)
    q = y.flatten(3).transpose(-1, -2).reshape(t, y.shape[1], -1, 4, c // 4).permute(0, 1, 3, 2, 4)
    y = (q @ (q.transpose(-2, -1) @ q)).transpose(3, 4).reshape(t, -1, c, h // 2, w // 2)
    return y.reshape(t, -1, 2, 2, c, h // 2, w // 2).permute(0, 1, 4, 5, 2, 6, 3).reshape(t, n, c, h, w)


MIXED = {
    "tokens and channels": lambda x: x.reshape(*x.shape[:2], 64, 16).transpose(2, 3).reshape(x.shape) + x,
    "two ways to split heads": lambda x: (
        x
        + x.reshape(*x.shape[:2], 2, 8, 64).transpose(2, 3).reshape(x.shape)
        + x.reshape(*x.shape[:2], 4, 4, 64).transpose(2, 3).reshape(x.shape)
    ),
    "channels meet pixels": lambda x: x.flatten(3).transpose(2, 3).reshape(x.shape) + x,
    "a product": lambda x: x + (x.reshape(*x.shape[:2], 8, 128) @ x.reshape(*x.shape[:2], 128, 8)).unsqueeze(2) * 0.01,
    "joined in two orders": lambda x: (
        torch.cat([x.flatten(2), x.transpose(2, 3).flatten(2)], 0).unflatten(0, (2, T)).mean(0).reshape(x.shape)
    ),
}


def gated_by_steps(x):
    """Scale each step by a gate that is one of the first channels."""
    gate = x.mean((0, 3, 4))[:, :T].sigmoid()
    return x * gate.transpose(0, 1)[..., None, None, None]


def compiled(function, budget):
    torch.manual_seed(0)
    model = warm(Net(function), (3, SIZE, SIZE))
    program = capture(model, InputSpec((3, SIZE, SIZE)))
    assert check_capture(model, program) == 0.0
    run_canonical_passes(program)
    return program, compile_program(program, budget=budget, policy=Uniform(), no_data="uniform")


@pytest.mark.parametrize("name", MIXED)
def test_a_mixed_reshape_is_exact_and_freezes_its_channels(name):
    program, done = compiled(MIXED[name], 0.9)
    assert done.verdict.passed
    assert "conv1" not in {group.name for group in program.groups if group.frozen is None}


def test_height_and_width_that_meet_are_pruned():
    program, done = compiled(lambda x: x + x.transpose(-1, -2), 0.7)
    assert done.verdict.passed and regroup not in {node.target for node in program.graph.nodes}


class Mixed(nn.Module):
    """A convolution that mixes time steps with channels, and whose channels are steps again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(T * C, T * C, 1)

    def forward(self, x):
        return self.conv(x.transpose(0, 1).flatten(1, 2)).unflatten(1, (T, C)).transpose(0, 1)


class Steps(nn.Module):
    """A convolution whose channels are time steps, in front of a neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv2d(T, T, 3, padding=1), neuron.LIFNode(step_mode="m")

    def forward(self, x):
        steps = self.conv(x.permute(1, 2, 0, 3, 4).flatten(0, 1)).unflatten(0, (x.shape[1], C))
        return self.lif(steps.permute(2, 0, 1, 3, 4))


@pytest.mark.parametrize("make", [Mixed, Steps])
def test_channels_that_are_time_steps_are_kept_exact_and_quantized(make, tmp_path):
    torch.manual_seed(0)
    program, done = compiled(make(), 0.95)
    assert done.verdict.passed
    assert (at_steps in {node.target for node in program.graph.nodes}) == (make is Mixed)
    small = compile_program(program, weights="int8", no_data="uniform")
    assert small.verdict.passed
    small.write(tmp_path / "out")
    load(tmp_path / "out")


def test_inspect_names_what_is_kept_and_why():
    program, _ = compiled(MIXED["channels meet pixels"], 0.9)
    [place] = opaque(program)
    assert "add in the model: the axes of its inputs do not fit together" in place["why"]
    assert place["where"].startswith(__file__)
    line = place["where"].rpartition(":")[2]
    [reason] = {group.frozen for group in program.groups if group.name == "conv1"}
    assert reason == f"an operation does not follow its axes (test_regroup.py:{line})"
    turned = Net(lambda x: x.reshape(*x.shape[:2], 24, 24).transpose(2, 3).reshape(x.shape)).eval()
    mixed = opaque(capture(turned, InputSpec((3, 6, 6))))
    assert mixed[0]["why"] == "a reshape of (2, -1, 16, 6, 6) to (2, -1, 24, 24) mixes axes"
    steps = opaque(compiled(Mixed(), 0.95)[0])
    assert any("for time steps" in p["why"] for p in steps)


def test_windows_that_join_the_batch_are_pruned():
    program, done = compiled(windows_joined_with_the_batch, 0.6)
    assert done.verdict.passed
    assert regroup not in {node.target for node in program.graph.nodes}
    assert any(group.frozen is None and "conv1" in group.producers for group in program.groups)


def test_a_reshape_that_mixes_the_batch_is_refused():
    with pytest.raises(UnsupportedError, match="batch"):
        capture(Net(lambda x: x.transpose(0, 1).reshape(x.shape)).eval(), InputSpec((3, SIZE, SIZE)))


def test_a_gate_for_each_step_may_come_from_other_axes():
    program, done = compiled(gated_by_steps, 0.9)
    assert done.verdict.passed
    assert at_steps in {node.target for node in program.graph.nodes}


class Columns(nn.Module):
    """Neurons that take the columns of an image one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(3, C, 3, 1, 1), neuron.LIFNode(step_mode="m")
        self.conv2, self.lif2 = nn.Conv1d(C, C, 3, 1, 1), neuron.LIFNode(step_mode="m")
        self.head = nn.Linear(C, 5)

    def forward(self, x):
        x = self.lif1(self.conv1(x).permute(3, 0, 1, 2))  # [W, N, C, H]
        x = self.lif2(self.conv2(x.flatten(0, 1)).reshape(x.shape)) + x
        return self.head(x.mean((0, 3)))


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_columns_of_an_image_are_steps(weights):
    torch.manual_seed(0)
    model = warm(Columns(), (3, SIZE, SIZE))
    program = capture(model, InputSpec((3, SIZE, SIZE)))
    assert check_capture(model, program) == 0.0
    run_canonical_passes(program)
    done = compile_program(program, budget=0.8, policy=Uniform(), no_data="uniform", weights=weights)
    assert done.verdict.passed


def test_a_pattern_that_splits_the_batch_is_refused():
    def split(x):
        return rearrange(rearrange(x, "t n c h w -> (n t) c h w"), "(t n) c h w -> t n c h w", t=T)

    with pytest.raises(UnsupportedError, match="cannot take 2 elements from batch"):
        capture(Net(split).eval(), InputSpec((3, SIZE, SIZE)))
