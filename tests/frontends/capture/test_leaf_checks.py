"""What a model hangs on its layers and neurons: kept, or refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import svitc
from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.onnx.export import export
from svitc.passes.pipelines import quantize
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify

CHANNELS = 6


class Net(nn.Module):
    def __init__(self, spike: nn.Module) -> None:
        super().__init__()
        self.conv, self.spike = layer.Conv2d(3, CHANNELS, 3, 1, 1, step_mode="m"), spike
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.spike(self.conv(x.unsqueeze(0).repeat(3, 1, 1, 1, 1)))
        return self.head(x.mean((3, 4))).mean(0)


def built(change: Callable[[neuron.BaseNode], object], kind: type = neuron.LIFNode) -> Net:
    torch.manual_seed(0)
    node = kind(step_mode="m", v_threshold=0.4)
    change(node)
    model = Net(node).eval()
    nn.init.normal_(model.conv.weight, std=0.5)
    return model


def program_of(model: nn.Module):
    return capture(model, svitc.InputSpec((3, 8, 8)))


def learned_threshold(node: neuron.BaseNode) -> None:
    del node.v_threshold
    node.v_threshold = nn.Parameter(torch.tensor(0.3))


def learned_reset(node: neuron.BaseNode) -> None:
    node.v_reset = torch.tensor([-0.125])


def learned_tau(node: neuron.BaseNode) -> None:
    del node.tau
    node.tau = nn.Parameter(torch.tensor(3.0))


@pytest.mark.parametrize("change", [learned_threshold, learned_reset, learned_tau])
def test_a_tensor_of_one_number_is_that_number(change):
    model = built(change)
    program = program_of(model)
    x = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        want = model(x)
    assert torch.equal(program(x), want)
    assert verify(program, export(program), [x]).passed
    twin = quantize(program)[0]
    verdict = verify_exact(twin, export(twin), [x])
    assert verdict.passed and verdict.total("firing") > 0
    functional.reset_net(model)


def test_a_time_constant_of_one_element_is_a_scalar():
    model = built(lambda node: setattr(node, "w", nn.Parameter(torch.tensor([[[0.3]]]))), neuron.ParametricLIFNode)
    program = program_of(model)
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(program(x), model(x))
    assert dynamics_of(program.module.get_submodule("spike")).learned.shape == ()
    assert verify(program, export(program), [x]).passed


def per_channel_threshold(node: neuron.BaseNode) -> None:
    del node.v_threshold
    node.v_threshold = nn.Parameter(torch.rand(CHANNELS, 1, 1) + 0.1)
    node.surrogate_function = surrogate.Rect()  # SpikingJelly's registered neurons take one threshold


def with_memory(node: neuron.BaseNode) -> None:
    node.register_memory("trace", 0.0)
    node.surrogate_function = surrogate.Rect()


@pytest.mark.parametrize("change", [per_channel_threshold, with_memory])
def test_a_neuron_with_more_than_its_dynamics_hold_is_traced(change):
    model = built(change)
    program = program_of(model)
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        want = model(x)
    assert torch.equal(program(x), want) and want.std() > 0
    assert verify(program, export(program), [x]).passed


REFUSED: dict[str, tuple[Callable, str]] = {
    "membranes": (
        lambda n: n.set_reset_value("v", torch.rand(CHANNELS, 1, 1)),
        "neuron spike has an initial membrane for each",
    ),
    "method": (lambda n: setattr(n, "multi_step_forward", lambda x: x), "spike, a LIFNode, has a multi_step_forward"),
    "fire": (lambda n: setattr(n, "single_step_functional_forward", lambda *a: a), "single_step_functional_forward"),
    "precision": (lambda n: setattr(n, "_neuron_precision", ("fp16",) * 3), "a precision of its own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_program_cannot_hold_is_refused_by_name(name):
    change, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message.replace("(", r"\(")) as raised:
        program_of(built(change))
    assert raised.value.hint and raised.value.where and "test_leaf_checks.py" in raised.value.where


def test_time_constants_for_each_channel_are_traced():
    model = built(lambda node: setattr(node, "w", nn.Parameter(torch.rand(CHANNELS, 1, 1))), neuron.ParametricLIFNode)
    program = program_of(model)
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        want = model(x)
    assert torch.equal(program(x), want) and want.std() > 0
    assert verify(program, export(program), [x]).passed
