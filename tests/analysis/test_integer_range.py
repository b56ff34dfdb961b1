"""Grids: each rule, by hand and by trying; what is real has none."""

from __future__ import annotations

import operator

import einops
import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

from support.programs import frames, lif, steps, tokens, view, written
from svitc.analysis.integer_range import IntegerRange, _of_layer, integer_ranges
from svitc.ir import ops
from svitc.ir.quantized_modules import FixedPoint

SPIKES = IntegerRange(1.0, 0, 1)


class Body(nn.Module):
    """Two spike tensors, and one operation on them."""

    def __init__(self, what, module: nn.Module | None = None) -> None:
        super().__init__()
        self.what, self.module = what, module
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.a_lif, self.b_lif = lif(), neuron.IFNode(step_mode="m")
        self.layer_scale = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x):
        x = frames(x)
        return self.what(self, self.a_lif(steps(self.a(x))), self.b_lif(steps(self.b(x))))


def grid_of(what, module: nn.Module | None = None) -> IntegerRange | None:
    """The grid of the last operation; its values are tried, too, on an input on which everything can fire."""
    torch.manual_seed(0)
    program = written(Body(what, module))
    output = next(iter(reversed(program.graph.nodes)))
    known = integer_ranges(program)
    grid = known.get(output.args[0])
    assert known.get(output) == grid
    if grid is not None:
        y = program(3 * torch.randn(program.input.batched(3))).double() / grid.unit
        assert torch.equal(y, y.round()) and grid.low <= float(y.min()) and float(y.max()) <= grid.high
        assert float(y.max()) > 0, "silence lies on any grid"
    return grid


RULES = {
    "LIF": (lambda m, a, b: a, SPIKES),
    "IF": (lambda m, a, b: b, SPIKES),
    "view": (lambda m, a, b: tokens(a), SPIKES),
    "block": (lambda m, a, b: a.tracer.create_proxy("call_function", ops.take_block, (a, 2, 1, 2), {}), SPIKES),
    "range": (lambda m, a, b: a.tracer.create_proxy("call_function", ops.take_range, (a, 2, 1, 4), {}), SPIKES),
    "repeat": (
        lambda m, a, b: a.tracer.create_proxy(
            "call_function", einops.repeat, (torch.mean(a, dim=(0,), keepdim=False), "b c y x -> t b c y x"), {"t": 2}
        ),
        IntegerRange(0.25, 0, 4),
    ),
    "sum of two": (lambda m, a, b: a + b, IntegerRange(1.0, 0, 2)),
    "sum of three": (lambda m, a, b: a + b + a, IntegerRange(1.0, 0, 3)),
    "difference": (lambda m, a, b: a - b, IntegerRange(1.0, -1, 1)),
    "difference of sums": (lambda m, a, b: a + a - (b + b), IntegerRange(1.0, -2, 2)),
    "mask": (lambda m, a, b: a * b, SPIKES),
    "square": (lambda m, a, b: (a + b) * (a + b), IntegerRange(1.0, 0, 4)),
    "product of differences": (lambda m, a, b: (a - b) * (a - b - b), IntegerRange(1.0, -2, 2)),
    "times a half": (lambda m, a, b: (a + b) * 0.5, IntegerRange(0.5, 0, 2)),
    "a half times": (lambda m, a, b: 0.5 * a, IntegerRange(0.5, 0, 1)),
    "over four": (lambda m, a, b: a / 4, IntegerRange(0.25, 0, 1)),
    "times and over": (lambda m, a, b: a * 0.125 / 0.5, IntegerRange(0.25, 0, 1)),
    "equal units": (lambda m, a, b: a * 0.5 + b / 2, IntegerRange(0.5, 0, 2)),
    "units multiply": (lambda m, a, b: (a * 0.5) * (b * 0.25), IntegerRange(0.125, 0, 1)),
    "attention": (
        lambda m, a, b: torch.matmul(tokens(a), view(b, "t b c y x -> t b c (y x)")),
        IntegerRange(1.0, 0, 4),  # channels
    ),
    "attention twice": (
        lambda m, a, b: torch.matmul(torch.matmul(tokens(a), view(b, "t b c y x -> t b c (y x)")) * 0.125, tokens(b)),
        IntegerRange(0.125, 0, 4 * 48),
    ),
    "product with itself": (
        lambda m, a, b: torch.matmul(view(a, "t b c y x -> t b c (y x)"), tokens(a)),
        IntegerRange(1.0, 0, 48),  # tokens
    ),
    "signed attention": (
        lambda m, a, b: torch.matmul(tokens(a - b), view(a + b, "t b c y x -> t b c (y x)")),
        IntegerRange(1.0, -8, 8),
    ),
    "sum": (lambda m, a, b: torch.sum(tokens(a), dim=(2,), keepdim=True), IntegerRange(1.0, 0, 48)),
    "sum over time and pixels": (
        lambda m, a, b: torch.sum(tokens(a), dim=(0, 2), keepdim=False),
        IntegerRange(1.0, 0, 192),
    ),
    "sum of differences": (lambda m, a, b: torch.sum(a - b, dim=(3, 4), keepdim=False), IntegerRange(1.0, -48, 48)),
    "mean over four": (lambda m, a, b: torch.mean(a, dim=(0,), keepdim=False), IntegerRange(0.25, 0, 4)),
    "mean over 32": (lambda m, a, b: torch.mean(a, dim=(0, 3), keepdim=False), IntegerRange(1 / 32, 0, 32)),
    "mean over six": (lambda m, a, b: torch.mean(a, dim=(4,), keepdim=False), None),
    "times a third": (lambda m, a, b: a * (1 / 3), None),
    "over three": (lambda m, a, b: a / 3, None),
    "times less than nothing": (lambda m, a, b: a * -0.5, None),
    "times zero": (lambda m, a, b: a * 0.0, None),
    "other units": (lambda m, a, b: a * 0.5 + b, None),
    "layer scale": (lambda m, a, b: a * m.layer_scale, None),
    "real": (lambda m, a, b: a * 0.3 + b, None),
    "current": (lambda m, a, b: m.module(view(a, "t b c y x -> (t b) c y x")), None, nn.Conv2d(4, 4, 1)),
    "normalised": (lambda m, a, b: m.module(view(a, "t b c y x -> (t b) c y x")), None, nn.BatchNorm2d(4)),
    "levels": (lambda m, a, b: m.module((a + b) * 2.6), IntegerRange(1.0, 0, 7), ops.IntegerSpike(7)),
    "counts": (
        lambda m, a, b: m.module((a + b) * 2.6),
        IntegerRange(1.0, 0, 5),
        neuron.ILIFNode(surrogate_function=surrogate.MultiLevelSpikeCount(max_spike_count=5), step_mode="m"),
    ),
    "fixed point": (lambda m, a, b: m.module((a - b) * 2.6), IntegerRange(1.0, -9, 9), FixedPoint(0.25, 9)),
}


@pytest.mark.parametrize("case", RULES)
def test_each_rule(case):
    what, want, *module = RULES[case]
    assert grid_of(what, *module) == want


def pooled(a, b, m):
    return m.module(view(a + b, "t b c y x -> (t b) c y x"))


POOLS = {
    "maximum": (nn.MaxPool2d(3, 2, 1), IntegerRange(1.0, 0, 2)),
    "mean of four": (nn.AvgPool2d(2), IntegerRange(0.25, 0, 8)),
    "mean of 1x4": (nn.AvgPool2d((1, 4), 2), IntegerRange(0.25, 0, 8)),
    "with zeros": (nn.AvgPool2d(4, 2, 1), IntegerRange(1 / 16, 0, 32)),
    "mean of nine": (nn.AvgPool2d(3), None),
    "without the zeros": (nn.AvgPool2d(4, 2, 1, count_include_pad=False), None),
    "without zeros to count": (nn.AvgPool2d(4, 2, count_include_pad=False), IntegerRange(1 / 16, 0, 32)),
    "windows that stand over": (nn.AvgPool2d(4, 3, ceil_mode=True), None),
    "a divisor of its own": (nn.AvgPool2d(2, divisor_override=3), None),
    "border": (nn.ZeroPad2d((1, 0, 2, 1)), IntegerRange(1.0, 0, 2)),
}


@pytest.mark.parametrize("case", POOLS)
def test_pools(case):
    module, want = POOLS[case]
    assert grid_of(lambda m, a, b: pooled(a, b, m), module) == want


def test_zeros_widen_what_does_not_hold_them():
    """A bound is of every value, those of the border included."""
    grid = IntegerRange(1.0, -4, -1)
    assert _of_layer(nn.ZeroPad2d(1), grid) == IntegerRange(1.0, -4, 0)
    assert _of_layer(nn.AvgPool2d(2, 1, 1), grid) == IntegerRange(0.25, -16, 0)
    assert _of_layer(nn.MaxPool2d(2, 1, 1), grid) == grid, "its border is less than anything"


def test_bytes():
    assert IntegerRange(0.5, 0, 255).is_byte and not IntegerRange(1.0, 0, 256).is_byte
    assert (
        IntegerRange(1.0, -1, 3).is_byte
        and IntegerRange(1.0, -128, 127).is_byte
        and not IntegerRange(1.0, 0, 127).is_signed_byte
    )
    assert not IntegerRange(1.0, -129, 0).is_byte and not IntegerRange(1.0, -1, 128).is_byte
    assert IntegerRange(1.0, -7, 3).bound == 7 and IntegerRange(1.0, 0, 3).bound == 3


@pytest.mark.parametrize("low", [-3, 0])
@pytest.mark.parametrize("other", [(-2, 5), (0, 4)])
def test_products_hold_every_product(low, other):
    made = IntegerRange(0.5, low, 3).times(IntegerRange(0.25, *other), terms=6)
    every = [6 * a * b for a in range(low, 4) for b in range(other[0], other[1] + 1)]
    assert made == IntegerRange(0.125, min(every), max(every))


def test_the_image_is_real_and_so_is_what_has_no_rule():
    class Image(nn.Module):
        def forward(self, x):
            return operator.add(x, x) - operator.mul(x, 0.5)

    assert integer_ranges(written(Image())) == {}
