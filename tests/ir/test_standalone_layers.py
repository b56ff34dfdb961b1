"""The classes that model.py contains: the program runs their subclasses, and their source needs nothing but torch."""

import inspect

import pytest
import torch
from torch import nn

from svitc.ir import ops, quantized_modules, standalone_layers

NAMES = (
    "Quantized",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedLinear",
    "FixedPoint",
    "Integer",
    "IntegerSpike",
    "Heaviside",
    "Step",
    "LeakyNeuron",
)


@pytest.fixture(scope="module")
def written():
    """The classes as a model.py defines them."""
    names = {"torch": torch, "nn": nn}
    for name in NAMES:
        exec(inspect.getsource(getattr(standalone_layers, name)), names)
    return names


@pytest.mark.parametrize("half_up", [False, True])
def test_integer_spikes_and_their_gradients(written, half_up):
    x = torch.linspace(-1, 4, 81, dtype=torch.float64)  # halves and both ends among them
    results = []
    for spike in (ops.IntegerSpike(3, "half_up" if half_up else "half_even"), written["IntegerSpike"](3, half_up)):
        y = x.clone().requires_grad_()
        spikes = spike(y)
        (spikes * torch.arange(81)).sum().backward()
        results.append((spikes, y.grad))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))
    assert torch.equal(results[0][1], torch.arange(81) * ((x >= 0) & (x <= 3)))


@pytest.mark.parametrize(
    "kind, arguments, shape",
    [
        ("QuantizedConv1d", (6, 4, 3, 2, 1, 1, 2), (2, 6, 9)),
        ("QuantizedConv2d", (6, 4, 3, 2, 1, 1, 2), (2, 6, 9, 9)),
        ("QuantizedLinear", (6, 4), (2, 3, 6)),
    ],
)
def test_quantized_layers(written, kind, arguments, shape):
    layers = [getattr(quantized_modules, kind)(*arguments, bias=False), written[kind](*arguments)]
    generator = torch.Generator().manual_seed(0)
    state = {
        "weight": torch.randint(-127, 128, layers[0].weight.shape, dtype=torch.int8, generator=generator),
        "scale": torch.rand(4, generator=generator) + 0.5,
        "bias": torch.randn(4, generator=generator),
    }
    x = torch.randint(0, 5, shape, generator=generator).float()
    for layer in layers:
        layer.load_state_dict(state)
    assert torch.equal(layers[0](x), layers[1](x))
    assert not list(layers[0].parameters()) and isinstance(layers[0], getattr(nn, kind.removeprefix("Quantized")))


@pytest.mark.parametrize("form", [(True, False, 1), (True, True, 1), (False, False, 1), (False, False, 3)])
def test_own_neurons_and_their_gradients(written, form):
    x = torch.linspace(-1, 2, 61, dtype=torch.float64).expand(4, -1)
    results = []
    for kind in (ops.LeakyNeuron, written["LeakyNeuron"]):
        y = x.clone().requires_grad_()
        spikes = kind(0.5, 0.75, 0.6, *form)(y)
        spikes.sum().backward()
        results.append((spikes, y.grad))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))
    assert results[0][0].max() == form[2] and results[0][1].any()


def test_fixed_point(written):
    x = torch.linspace(-3, 3, 97)
    assert torch.equal(quantized_modules.FixedPoint(0.25, 9)(x), written["FixedPoint"](0.25, 9)(x))
