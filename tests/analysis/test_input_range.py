"""The range of an input: what the model itself proves of it, and what is taken where it proves nothing."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from support.families import FAMILIES, warm
from svitc.analysis.input_range import BYTES, COUNTS, PIXELS, input_range, least_input
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.program import Program


class Stem(nn.Module):
    def __init__(self, bias: bool = True, kernel: int = 3) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, kernel, bias=bias), nn.BatchNorm2d(8)
        self.spike, self.head = neuron.LIFNode(step_mode="m"), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.spike(self.bn(self.conv(x)).unsqueeze(0).repeat(2, 1, 1, 1, 1))
        return self.head(x.mean((3, 4))).mean(0)


def trained_on(make, **k) -> Program:
    """Return a small model whose batch norm has seen images that ``make`` draws."""
    torch.manual_seed(0)
    model = Stem(**k)
    model.bn.momentum = 1.0
    model.train()(make(64, 3, 12, 12))
    functional.reset_net(model)
    return capture(model.eval(), InputSpec((3, 12, 12)))


IMAGES = {
    "pixels of 8 bits": (lambda *s: torch.randint(0, 256, s).float(), BYTES),
    "pixels of 8 bits without their mean": (lambda *s: torch.randint(0, 256, s).float() - 118, BYTES),
    "normalized": (torch.randn, PIXELS),
    "from 0 to 1": (torch.rand, PIXELS),
    "pixels of 16 bits": (lambda *s: torch.randint(0, 65536, s).float(), None),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kernel": 1}])
def test_the_range_holds_what_the_batch_norm_has_seen(name, options):
    make, expected = IMAGES[name]
    program = trained_on(make, **options)
    largest = float(make(64, 3, 12, 12).abs().max())
    least = least_input(program)
    assert least is not None and least <= 1.01 * largest
    span = input_range(program).span
    assert span == expected if expected else span >= 65535
    assert span == PIXELS or span >= largest


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_normalized_pixels_keep_the_usual_range(name):
    torch.manual_seed(0)
    factory, shape = FAMILIES[name]
    found = input_range(capture(warm(factory(T=2), shape), InputSpec(shape)))
    assert (found.low, found.high, found.source) == (-PIXELS, PIXELS, "assumed")


def test_a_model_that_was_never_trained_proves_nothing():
    torch.manual_seed(0)
    model = Stem()
    nn.init.normal_(model.conv.weight, std=1e-4)
    program = capture(model.eval(), InputSpec((3, 12, 12)))
    assert least_input(program) is None and input_range(program).source == "assumed"


def test_measured_images_declarations_and_normalizations_come_first():
    program = trained_on(torch.randn)
    assert input_range(program, (-2.0, 2.6)).span == PIXELS
    assert input_range(program, (0.0, 201.0)).span == 256.0
    assert input_range(program, (0.0, 0.01)).span == 2.0**-6
    program.info["normalize"] = {"mean": [0.5] * 3, "std": [0.1] * 3}
    assert input_range(program).span == pytest.approx(5.0) and input_range(program).source == "normalization"
    program.info["normalize"] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert input_range(program).span == PIXELS
    program.info["input_range"] = {"low": 0.0, "high": 9.0, "source": "declared"}
    assert input_range(program, (0.0, 201.0)).span == 9.0


def test_counts_of_events_keep_their_own_range():
    torch.manual_seed(0)
    factory, shape = FAMILIES["sdt"]
    spec = InputSpec((4, *shape))
    found = input_range(capture(warm(factory(T=4), spec.shape), spec))
    assert found.span == COUNTS
