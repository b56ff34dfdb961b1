"""Bounds behind float sums: rounding explains every current of a right program, and a wrong weight is found."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn
from torch.nn import functional as F

import svitc
from support.random_blocks import Apply, each
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir.program import Program
from svitc.passes.pipelines import quantize
from svitc.verification.quantization_check import check_quantization
from svitc.verification.verdict import QuantizationVerdict

T, C, SIZE = 2, 8, 8


class Net(nn.Module):
    """A convolution of spikes whose real-valued sums an operation changes before they reach a neuron."""

    def __init__(self, operation: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, C, 3, padding=1), neuron.IFNode(v_threshold=0.3, step_mode="m")
        self.conv = nn.Conv2d(C, C, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.mul_(4)
        attend = nn.Conv2d(2, 1, 3, padding=1)
        self.operation = Apply(operation, attend=attend, mix=nn.Parameter(torch.randn(C, C) * 0.3))
        self.fire = neuron.LIFNode(v_threshold=0.5, step_mode="m")

    def forward(self, x):
        x = self.first(each(x.unsqueeze(0).repeat(T, 1, 1, 1, 1), self.stem))
        return self.fire(self.operation(each(x, self.conv))).flatten(2).mean(0)


def gated(m: nn.Module, y: torch.Tensor) -> torch.Tensor:
    """Return the currents times a gate for each pixel, made of the mean and the maximum of its channels."""
    flat = y.flatten(0, 1)
    pooled = torch.cat([flat.mean(1, keepdim=True), flat.max(1, keepdim=True).values], 1)
    return (flat * torch.sigmoid(m.attend(pooled))).unflatten(0, y.shape[:2])


def kept(y: torch.Tensor) -> torch.Tensor:
    """Return the pixels at which the first channel is largest."""
    places = y[:, :, :1].flatten(3).topk(4, 3).indices
    return y.flatten(3).gather(3, places.expand(-1, -1, C, -1))


OPERATIONS: dict[str, Callable] = {
    "amax over channels": lambda m, y: y.amax(2),
    "amax over channels, kept": lambda m, y: y.amax(2, keepdim=True),
    "amin": lambda m, y: y.amin((3, 4), keepdim=True),
    "softmax": lambda m, y: y.softmax(2) * 2,
    "softmax over pixels": lambda m, y: y.flatten(3).softmax(-1) * 20,
    "minimum": lambda m, y: torch.minimum(y, y.roll(1, 4)),
    "where": lambda m, y: torch.where(y > 0.2, y, y.flip(3)),
    "bicubic": lambda m, y: each(y, lambda z: F.interpolate(z, size=(5, 5), mode="bicubic", align_corners=False)),
    "bilinear": lambda m, y: each(y, lambda z: F.interpolate(z, size=(5, 5), mode="bilinear", align_corners=False)),
    "topk": lambda m, y: y.topk(3, 2).values,
    "gather": lambda m, y: kept(y),
    "attention of pixels": gated,
    "twice": lambda m, y: y + y,
    "square": lambda m, y: y * y * 0.2,
    "einsum": lambda m, y: torch.einsum("tnchw,dc->tndhw", y, m.mix),
    "product of currents": lambda m, y: torch.einsum("tnchw,tndhw->tncd", y, y) * 0.01,
    "cumsum": lambda m, y: y.cumsum(0) * 0.5,
    "padding": lambda m, y: F.pad(y, (1, 1), value=0.5),
}
# a choice by currents may take any element, so that the neuron behind it proves little
ANY_ELEMENT = ("gather",)


def original(name: str) -> Program:
    """Return the float program of a network around an operation."""
    torch.manual_seed(0)
    program = capture(Net(OPERATIONS[name]).eval(), svitc.InputSpec((3, SIZE, SIZE)))
    run_canonical_passes(program)
    return program


def checked(program: Program, quantized: Program) -> QuantizationVerdict:
    x = torch.randn((2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    return check_quantization(program, quantized, x)


@pytest.mark.parametrize("name", OPERATIONS)
def test_rounding_explains_every_value_behind_an_operation(name):
    program = original(name)
    verdict = checked(program, quantize(program)[0])
    assert verdict.first_divergence is None and "fire" in verdict.beyond
    assert not any(count for count, _ in verdict.clamped.values())


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_wrong_weight_before_an_operation_is_found(name):
    program = original(name)
    quantized = quantize(program)[0]
    quantized.module.get_submodule("conv").get_buffer("weight")[0].neg_()
    verdict = checked(program, quantized)
    assert verdict.beyond["conv"] and verdict.first_divergence is not None


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ANY_ELEMENT])
def test_a_wrong_factor_before_an_operation_is_found_behind_it(name):
    program = original(name)
    quantized = quantize(program)[0]
    layer = next(node for node in quantized.graph.nodes if str(node.target) == "conv")
    with quantized.graph.inserting_after(layer):
        product = quantized.graph.call_function(operator.mul, (layer, 0.5))
    layer.replace_all_uses_with(product, lambda user: user is not product)
    quantized.retype()
    quantized.module.recompile()
    assert checked(program, quantized).beyond["fire"]


def test_bounds_that_say_nothing_allow_any_number():
    """Where currents grow beyond all bounds, in both programs, none of them is an error."""

    def grow(m, y):
        y = y.exp()
        for _ in range(7):
            y = y * y + y
        return y - y * y

    torch.manual_seed(0)
    program = capture(Net(grow).eval(), svitc.InputSpec((3, SIZE, SIZE)))
    run_canonical_passes(program)
    assert checked(program, quantize(program)[0]).first_divergence is None
