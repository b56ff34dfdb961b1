"""Constants: whatever does not depend on the input is computed as the model does, and becomes part of the program."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional as F

from svitc.driver.load import check_capture
from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec

IMAGE = InputSpec((3, 8, 6))


class Net(nn.Module):
    """A host: ``body`` maps spikes [T, N, C, H, W] to the same shape."""

    def __init__(self, body) -> None:
        super().__init__()
        self.conv, self.lif = layer.Conv2d(3, 8, 3, padding=1, step_mode="m"), neuron.LIFNode(step_mode="m")
        self.head, self.body = nn.Linear(8, 5), body
        self.w, self.scalar = nn.Parameter(torch.randn(8)), nn.Parameter(torch.tensor([0.7]))
        self.kernel, self.bias = nn.Parameter(torch.randn(8, 1, 3, 3)), nn.Parameter(torch.randn(8))
        self.matrix, self.place = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(1, 1, 8, 8, 6))
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("var", torch.rand(8) + 0.5)
        self.plain, self.listed = torch.randn(8, 1, 1), [torch.tensor(0.3)]

    def forward(self, x):
        x = self.lif(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1)))
        return self.head(self.body(self, x).mean((0, 3, 4)))


def flat(f):
    return lambda net, x: f(net, x.flatten(0, 1)).unflatten(0, (2, -1))


BODIES = {
    "position": lambda n, x: x + n.place,
    "layer scale": lambda n, x: x * n.w.view(1, 1, -1, 1, 1),
    "scalar": lambda n, x: x * n.scalar,
    "computed scalar": lambda n, x: x * n.scalar.sigmoid(),
    "computed vector": lambda n, x: x * torch.softmax(n.w, 0)[:, None, None],
    "attribute": lambda n, x: x + n.plain,
    "in a list": lambda n, x: x * n.listed[0],
    "zeros": lambda n, x: x + torch.zeros(x.shape),
    "zeros like": lambda n, x: torch.zeros_like(x) + x,
    "ones": lambda n, x: x * torch.ones(x.shape[1], 1, 1, 1) * 0.5,
    "new": lambda n, x: x * x.new_full((1,), 0.25),
    "range": lambda n, x: x * torch.arange(1, 9).view(8, 1, 1),
    "linspace": lambda n, x: x * torch.linspace(0, 1, 6),
    "mask": lambda n, x: x * (torch.arange(6) > 2),
    "eye": lambda n, x: (x.transpose(2, 4) @ torch.eye(8)).transpose(2, 4),
    "NumPy": lambda n, x: np.float32(0.5) * x * np.float64(0.25),
    "branch on a parameter": lambda n, x: x * 2 if n.scalar > 0.5 else x,
    "value of a parameter": lambda n, x: x * n.scalar.item(),
    "no constant": lambda n, x: x * 1,
    "convolution": flat(lambda n, x: F.conv2d(x, n.kernel, n.bias, padding=1, groups=8)),
    "computed kernel": flat(lambda n, x: F.conv2d(x, n.kernel - n.kernel.mean(), None, 1, 1, 1, 8)),
    "own layer's weight": flat(lambda n, x: F.conv2d(x, n.kernel.abs(), n.w, padding="same", groups=8)),
    "linear": lambda n, x: F.linear(x.transpose(2, 4), n.matrix).transpose(2, 4),
    "matrix on the right": lambda n, x: (x.transpose(2, 4) @ n.matrix).transpose(2, 4),
    "matrix on the left": lambda n, x: (n.matrix @ x.flatten(3)).unflatten(3, (8, 6)),
    "batch norm": flat(lambda n, x: F.batch_norm(x, n.mean, n.var, n.w, n.bias)),
    "membrane in a buffer": lambda n, x: carried(n, x),
    "dropout": lambda n, x: F.dropout(x, 0.5, n.training),
}


def carried(net, x):
    net.mean = net.mean.view(8, 1, 1) + x  # as models do that carry a membrane along
    return net.mean


@pytest.mark.parametrize("case", BODIES)
def test_constants_are_exact(case):
    torch.manual_seed(0)
    model = Net(BODIES[case]).eval()
    with torch.no_grad():
        model.conv.weight.mul_(6)
    program = capture(model, IMAGE)
    check_capture(model, program)
    x = torch.rand(4, 3, 8, 6) * 3
    want = program(x)
    assert want.std() > 0
    model.lif.reset()
    fresh = Net(BODIES[case]).eval()
    fresh.load_state_dict(model.state_dict())
    fresh.plain, fresh.listed = model.plain, model.listed
    with torch.no_grad():
        assert torch.allclose(fresh(x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "name"),
    [("position", "place"), ("layer scale", "w"), ("scalar", "scalar"), ("convolution", "conv2d.weight")],
)
def test_a_parameter_stays_a_parameter(case, name):
    model = Net(BODIES[case]).eval()
    program = capture(model, IMAGE)
    assert name in dict(program.module.named_parameters())
    assert name.split(".")[0] not in program.info["dead"] and "matrix" in program.info["dead"]


@pytest.mark.parametrize("case", ["in a list", "computed scalar", "zeros", "NumPy", "new"])
def test_one_number_becomes_a_number(case):
    program = capture(Net(BODIES[case]).eval(), IMAGE)
    assert not any(n.op == "get_attr" for n in program.graph.nodes)


def test_a_function_of_a_layers_own_parameters_is_that_layer():
    def body(net, x):
        return x + F.linear(x.transpose(2, 4), net.again.weight, net.again.bias).transpose(2, 4)

    model = Net(body).eval()
    model.again = nn.Linear(8, 8)
    program = capture(model, IMAGE)
    assert any(n.target == "again" for n in program.graph.nodes)


def test_a_function_that_is_called_twice_is_one_layer():
    program = capture(
        Net(
            flat(lambda n, x: F.conv2d(F.conv2d(x, n.kernel, groups=8, padding=1), n.kernel, groups=8, padding=1))
        ).eval(),
        IMAGE,
    )
    calls = [str(n.target) for n in program.graph.nodes if n.op == "call_module"]
    assert calls.count("conv2d") == 2


REFUSED = {
    "random": (lambda n, x: x + torch.randn(6), "random numbers"),
    "random mask": (lambda n, x: x * (torch.rand(x.shape) > 0.5), "random numbers"),
    "random mask of a value": (lambda n, x: x * (x.mean() > torch.rand(())), "random numbers"),
    "random, scaled": (lambda n, x: x * (1 - torch.rand_like(x)), "random numbers"),
    "random by function": (lambda n, x: x * torch.floor(torch.rand(6)), "random numbers"),
    "dropout": (lambda n, x: F.dropout(x), "drops values in inference"),
    "batch statistics": (flat(lambda n, x: F.batch_norm(x, None, None, training=True)), "statistics of the batch"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_differs_between_calls_is_refused(case):
    body, message = REFUSED[case]
    with pytest.raises(UnsupportedError, match=message) as caught:
        capture(Net(body).eval(), IMAGE)
    assert __file__ in (caught.value.where or "")


def test_numbers_keep_their_order():
    program = capture(Net(lambda n, x: torch.tensor(1.0) - x).eval(), IMAGE)
    assert operator.sub not in {n.target for n in program.graph.nodes}


@pytest.mark.parametrize("mask", [lambda x: torch.rand(size=x.shape).gt(0.0), lambda x: torch.rand_like(x) < 1])
def test_a_mask_that_every_draw_fills_is_none(mask):
    model = Net(lambda n, x: x * mask(x)).eval()
    assert check_capture(model, capture(model, IMAGE)) == 0.0
