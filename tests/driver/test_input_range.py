"""Inputs of any range through a compilation: measured, derived or declared, reported, and never clamped silently."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

import svitc
from svitc.driver.compiler import Compiler
from svitc.driver.options import CompileOptions
from svitc.errors import UsageError
from svitc.frontends.capture.capture import capture
from svitc.passes.policies import make
from svitc.runtimes import session

SHAPE = (3, 12, 12)


class Net(nn.Module):
    """A model that takes pixels as they are: its own batch norm scales them."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv, self.bn, self.spike = nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width), self.neuron()
        self.fc, self.spike2, self.head = nn.Linear(width, width), self.neuron(), nn.Linear(width, 6)

    @staticmethod
    def neuron() -> neuron.LIFNode:
        return neuron.LIFNode(v_threshold=0.3, step_mode="m")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.spike(self.bn(self.conv(x)).unsqueeze(0).repeat(4, 1, 1, 1, 1))
        return self.head(self.spike2(self.fc(x.flatten(3).transpose(2, 3))).mean(2)).mean(0)


class Images:
    """Images of a user's own class."""

    labeled = True

    def __init__(self, largest: float, count: int = 96) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.rand((count, *SHAPE), generator=generator) * largest
        self.y = torch.randint(0, 6, (count,), generator=generator)

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for i in range(0, len(self.x), size):
            yield self.x[i : i + size], self.y[i : i + size]

    def __len__(self) -> int:
        return len(self.x)


def model_of(largest: float, trained: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    model.bn.momentum = 1.0
    if trained:
        model.train()(Images(largest).x)
        functional.reset_net(model)
    else:
        nn.init.normal_(model.conv.weight, std=0.3 / largest)
    return model.eval()


def compiled(model: nn.Module, **options):
    program = capture(model, svitc.InputSpec(SHAPE))
    return Compiler(program, make("uniform"), CompileOptions(weights="int8", **options)).compile()


def agreement(model: nn.Module, exported: bytes, largest: float) -> float:
    x = Images(largest).x
    with torch.no_grad():
        want = model(x).argmax(1).numpy()
    functional.reset_net(model)
    got = session(exported).run(None, {"image": x.numpy()})[0].argmax(1)
    return float(np.mean(got == want))


@pytest.mark.parametrize("largest", [1.0, 255.0])
@pytest.mark.parametrize("options", [{}, {"no_data": "uniform"}])
def test_the_batch_norm_tells_the_range(largest, options):
    model = model_of(largest)
    done = compiled(model, **options)
    assert done.verdict.passed and agreement(model, done.onnx, largest) > 0.9
    described = done.report["input"]
    assert described["range"][1] >= largest
    assert described["range_from"] == ("batch norm" if largest > 4 else "assumed")


@pytest.mark.parametrize("largest", [255.0, 0.01])
def test_images_tell_the_range(largest):
    model = model_of(largest, trained=False)
    done = compiled(model, data=Images(largest))
    assert done.verdict.passed and agreement(model, done.onnx, largest) > 0.9
    assert done.report["input"]["range_from"] == "measured" and done.report["input"]["range"][1] >= largest
    assert not any("clamped" in line for line in done.report["decisions"])


def test_the_user_tells_the_range():
    model = model_of(255.0, trained=False)
    done = compiled(model, input_range=(0.0, 255.0))
    assert done.report["input"] == {
        "shape": list(SHAPE),
        "events": False,
        "range": [0.0, 255.0],
        "range_from": "declared",
    }
    assert done.verdict.passed and agreement(model, done.onnx, 255.0) > 0.9


def test_images_outside_the_declared_range_fail_the_verification_and_are_counted():
    done = compiled(model_of(255.0, trained=False), input_range=(-4.0, 4.0), data=Images(255.0))
    assert not done.verdict.passed and "clamps values outside its range" in str(done.verdict.first_divergence)
    assert any("are clamped to it" in line and "--input-range" in line for line in done.report["decisions"])


def test_an_empty_range_is_refused():
    with pytest.raises(UsageError, match="is empty"):
        compiled(model_of(1.0), input_range=(2.0, 2.0))


def test_floats_have_no_range():
    program = capture(model_of(255.0), svitc.InputSpec(SHAPE))
    done = Compiler(program, make("uniform"), CompileOptions(weights="fp32")).compile(1.0)
    assert "range" not in done.report["input"] and "quantization" not in done.report["verify"]
