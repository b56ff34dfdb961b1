"""Leaves: what only looks like a known layer is traced into, and weights that are computed are computed once."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from svitc.driver.load import check_capture
from svitc.frontends.capture.capture import capture
from svitc.frontends.capture.leaves import leaf_kind
from svitc.frontends.capture.reparametrized import bake, copy_model
from svitc.ir.graph import InputSpec

IMAGE = InputSpec((3, 8, 6))


class Halved(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 0.5


class HalvedInside(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 0.5, bias)


class HalvedWeight(nn.Linear):
    @property
    def weight(self):
        if "weight" not in self._parameters:
            raise AttributeError("weight")
        return self._parameters["weight"] * 0.5


class Named(nn.Conv2d):
    def __init__(self, width: int) -> None:
        super().__init__(3, width, 1)

    def extra_repr(self) -> str:
        return "mine"

    def helper(self) -> int:
        return 3


class Quick(neuron.LIFNode):
    def neuronal_charge(self, x):
        self.v = self.v + x


def patched() -> nn.Module:
    module = nn.Conv2d(3, 4, 1)
    module.forward = lambda x: x
    return module


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Conv2d(3, 4, 1), nn.Conv2d),
        (layer.Conv2d(3, 4, 1), nn.Conv2d),
        (layer.WSConv2d(3, 4, 1), None),
        (Named(4), nn.Conv2d),
        (Halved(3, 4, 1), None),
        (HalvedInside(3, 4, 1), None),
        (HalvedWeight(3, 4), None),
        (patched(), None),
        (neuron.LIFNode(), neuron.LIFNode),
        (neuron.ILIFNode(), neuron.ILIFNode),
        (type("Mine", (neuron.LIFNode,), {"__init__": neuron.LIFNode.__init__})(), neuron.LIFNode),
        (Quick(), None),
        (nn.GELU(), None),
    ],
)
def test_only_what_computes_the_same_is_known(module, kind):
    assert leaf_kind(module) is kind


class Host(nn.Module):
    """A layer between two neurons, on inputs that make both of them fire."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 4, 1), body, nn.Linear(4, 5)
        self.first, self.second = (neuron.LIFNode(v_threshold=0.2, step_mode="m") for _ in range(2))

    def forward(self, x):
        x = self.first(self.stem(x).unsqueeze(0).repeat(2, 1, 1, 1, 1))
        x = self.body(x.flatten(0, 1)).unflatten(0, (2, -1))
        return self.head(self.second(x).mean((0, 3, 4)))


def captured(model: nn.Module):
    """Return the program of a model, after a look at bright images, on which the neurons fire."""
    model.eval()
    program = capture(model, IMAGE)
    check_capture(model, program)
    x = 2 + torch.rand(4, 3, 8, 6)
    with torch.no_grad():
        assert torch.equal(program(x), copy_model(model)(x)) and program(x).std() > 0
    return program


@pytest.mark.parametrize("kind", [Halved, HalvedInside, layer.WSConv2d])
def test_a_layer_with_code_of_its_own_is_traced(kind):
    torch.manual_seed(0)
    captured(Host(kind(4, 4, 3, padding=1)))


WRAPPERS = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "weight_norm, new": parametrizations.weight_norm,
    "spectral_norm, new": parametrizations.spectral_norm,
    "pruned": lambda conv: prune.random_unstructured(conv, "weight", 0.5),
    "pruned twice": lambda c: prune.l1_unstructured(prune.random_unstructured(c, "weight", 0.3), "weight", 0.3),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_computed_weights_are_computed_once(wrapper):
    torch.manual_seed(0)
    program = captured(Host(WRAPPERS[wrapper](nn.Conv2d(4, 4, 3, padding=1))))
    body = program.module.body
    assert type(body) is nn.Conv2d and set(body._parameters) == {"weight", "bias"} and not body._forward_pre_hooks


def test_tied_weights_stay_tied():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    for linear in (first, second):
        prune.custom_from_mask(linear, "weight", torch.eye(4))
    second.weight_orig = first.weight_orig
    model = nn.Sequential(first, second)
    bake(model)
    assert first.weight is second.weight and torch.equal(first.weight, first.weight * torch.eye(4))


def test_hooks_are_part_of_the_model():
    torch.manual_seed(0)
    model = Host(nn.Conv2d(4, 4, 1))
    seen = []
    model.body.register_forward_hook(lambda module, args, output: output * 2)
    model.stem.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    model.second.register_forward_pre_hook(lambda module, args: (F.relu(args[0]),))
    program = captured(model)
    assert any(n.op == "call_function" and "mul" in str(n.target) for n in program.graph.nodes) and seen


def test_a_computed_weight_is_copied_with_the_model():
    model = nn.Sequential(weight_norm(nn.Linear(3, 3)))
    model(torch.ones(1, 3))
    assert not model[0].weight.is_leaf
    assert torch.equal(copy_model(model)(torch.ones(1, 3)), model(torch.ones(1, 3)))
