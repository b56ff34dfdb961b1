"""Integer spikes: every way to spell them is one neuron, exactly; what only looks like one is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import svitc
from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.graph import InputSpec

IMAGE = InputSpec((3, 4, 5))
SPELLINGS = {
    "round of clamp": (lambda x: torch.round(torch.clamp(x, 0, 4)), 4, "half_even"),
    "methods": (lambda x: x.clamp(min=0, max=2).round(), 2, "half_even"),
    "clamp of round": (lambda x: torch.clip(x.round(), 0.0, 8.0), 8, "half_even"),
    "floor": (lambda x: torch.floor(torch.clamp(x, 0, 4) + 0.5), 4, "half_up"),
    "half first": (lambda x: (0.5 + x.clamp(0, 4)).floor(), 4, "half_up"),
    "clamp of floor": (lambda x: torch.clamp((x + 0.5).floor(), 0, 4), 4, "half_up"),
    "relu6": (lambda x: F.relu6(x).round(), 6, "half_even"),
    "hardtanh": (lambda x: F.hardtanh(x, 0.0, 3.0).round(), 3, "half_even"),
}


class Host(nn.Module):
    """A spike between a convolution and a linear layer, on values that reach every level and every half."""

    def __init__(self, spike, again: bool = False) -> None:
        super().__init__()
        self.conv, self.head, self.spike, self.again = nn.Conv2d(3, 4, 1, bias=False), nn.Linear(4, 5), spike, again
        with torch.no_grad():
            self.conv.weight.copy_(torch.randint(-4, 5, self.conv.weight.shape))

    def forward(self, x):
        x = self.spike(self.conv(x))
        x = self.spike(x * 0.5) if self.again else x
        return self.head(x.flatten(2).sum(2))


class Spike(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x) / 4


def halves(n: int) -> torch.Tensor:
    return torch.randint(-5, 6, IMAGE.batched(n), generator=torch.Generator().manual_seed(0)) / 2.0


@pytest.mark.parametrize("inside", [False, True], ids=["function", "module"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_one_neuron(spelling, inside):
    function, levels, rounding = SPELLINGS[spelling]
    torch.manual_seed(0)
    model = Host(Spike(function) if inside else function).eval()
    program = capture(model, IMAGE)
    neurons = [program.module_of(node) for node in program.neurons()]
    assert [(type(m), m.levels, m.rounding) for m in neurons] == [(ops.IntegerSpike, levels, rounding)]
    assert [str(node.target) for node in program.neurons()] == ["spike"]
    x = halves(4)
    with torch.no_grad():
        assert torch.equal(program(x), model(x))
    currents = torch.linspace(-1, levels + 1, 97)
    assert torch.equal(neurons[0](currents), function(currents))


def test_a_module_that_is_called_twice_makes_two_neurons():
    torch.manual_seed(0)
    model = Host(Spike(SPELLINGS["floor"][0]), again=True).eval()
    program = capture(model, IMAGE)
    assert [str(node.target) for node in program.neurons()] == ["spike", "spike_1"]
    with torch.no_grad():
        assert torch.equal(program(halves(4)), model(halves(4)))


def test_a_module_with_more_to_it_keeps_the_rest():
    class Scaled(Spike):
        def __init__(self, function) -> None:
            super().__init__(function)
            self.scale = nn.Parameter(torch.tensor([0.5]))

        def forward(self, x):
            return self.function(x) * self.scale

    torch.manual_seed(0)
    model = Host(Scaled(SPELLINGS["round of clamp"][0])).eval()
    program = capture(model, IMAGE)
    assert [str(node.target) for node in program.neurons()] == ["spike.spike"]
    with torch.no_grad():
        assert torch.equal(program(halves(4)), model(halves(4)))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(-1, 4).round(),
        lambda x: x.clamp(0, 2.5).round(),
        lambda x: x.clamp(0, 4),
        lambda x: x.round(),
        lambda x: (x.clamp(0, 4) + 0.25).floor(),
    ],
)
def test_what_only_looks_like_one_stays_as_it_is(function):
    model = Host(function).eval()
    program = capture(model, IMAGE)
    assert not any(isinstance(program.module_of(node), ops.IntegerSpike) for node in program.neurons())
    with torch.no_grad():
        assert torch.equal(program(halves(4)), model(halves(4)))


def test_an_argument_that_is_not_known_is_refused():
    with pytest.raises(UnsupportedError, match=r"round with decimals=1 is not supported") as caught:
        capture(Host(lambda x: x.clamp(0, 4).round(decimals=1)), IMAGE)
    assert "test_integer_spikes.py" in (caught.value.where or "")


def test_the_gradient_passes_where_nothing_was_clipped():
    spike = ops.IntegerSpike(4)
    x = torch.tensor([-0.5, 0.2, 2.5, 3.9, 4.5], requires_grad=True)
    y = spike(x)
    y.sum().backward()
    assert y.tolist() == [0, 0, 2, 4, 4] and x.grad.tolist() == [0, 1, 1, 1, 0]
    assert ops.IntegerSpike(4, "half_up")(torch.tensor([0.5, 1.5, 2.5])).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="rounded down"):
        ops.IntegerSpike(4, "down")


def test_a_neuron_that_is_called_twice_is_two():
    """It has no state, so that a copy is the same; names tell their spikes apart, in verification, too."""
    torch.manual_seed(0)
    model = Host(ops.IntegerSpike(4), again=True).eval()
    program = capture(model, IMAGE)
    assert [str(node.target) for node in program.neurons()] == ["spike", "spike_1"]
    x = halves(2)
    with torch.no_grad():
        assert torch.equal(program(x), model(x))
    done = svitc.compile(program, 0.7, images=2, no_data="uniform")
    assert done.verdict.passed and list(done.verdict.layers) == ["spike", "spike_1"]
    assert model.spike is not program.module.spike


def test_another_function_says_that_its_gradient_is_lost():
    class Gentle(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * 2

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx, grad):
            return grad * 0.1

    model = Host(lambda x: Gentle.apply(x)).eval()
    program = capture(model, IMAGE)
    assert program.info["assumptions"] == ["gradients of Gentle are those of their forward, not their own"]
    with torch.no_grad():
        assert torch.equal(program(halves(2)), model(halves(2)))
        assert torch.equal(Gentle.apply(torch.ones(2)), torch.full((2,), 2.0)), "as it was outside of a capture"
