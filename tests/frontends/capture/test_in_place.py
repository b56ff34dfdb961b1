"""Changes in place: what is read afterwards is the changed value, also through other names and views of it."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional as F

from svitc.driver.eager import EagerModel
from svitc.driver.load import check_capture
from svitc.errors import UnsupportedError
from svitc.frontends import Loaded
from svitc.frontends.capture.capture import capture
from svitc.frontends.capture.model_rewrites import reference
from svitc.ir.graph import InputSpec

IMAGE = InputSpec((3, 8, 6))


class Net(nn.Module):
    """A host: ``body`` maps spikes [T, N, C, H, W] to the same shape."""

    def __init__(self, body) -> None:
        super().__init__()
        self.conv, self.lif = layer.Conv2d(3, 8, 3, padding=1, step_mode="m"), neuron.LIFNode(step_mode="m")
        self.head, self.body = nn.Linear(8, 5), body

    def forward(self, x):
        x = self.lif(self.conv(x.unsqueeze(0).repeat(3, 1, 1, 1, 1)))
        return self.head(self.body(x).mean((0, 3, 4)))


def changed(*changes):
    """Return a body that makes changes to a copy of its input, and returns it."""

    def body(x):
        y = x * 1.5
        for change in changes:
            change(y, x)
        return y

    return body


def seen_by_others(x):
    y = x * 1.5
    alias, view, flat = y, y.transpose(0, 1), y.flatten(3)
    alias.add_(x)
    return y + view.transpose(0, 1) + flat.unflatten(3, (8, 6))


def through_a_view(x):
    y = x * 1.5
    y.transpose(3, 4).unsqueeze(0).mul_(2)
    return y


def accumulated(x):
    total = torch.zeros_like(x)
    same = total
    for t in range(3):
        total += x * t
    return same * 0.5


def steps(x, order=(0, 1, 2)):
    out, mem = torch.zeros_like(x), torch.zeros_like(x[0])
    for t in order:
        mem = mem * 0.25 + x[t]
        out[t] = mem
    return out


def inside(x):
    out = torch.zeros(x.shape)
    for t in range(3):
        out[t, :, 0:4] = x[t, :, 4:8]
        out[t, :, 4:8] = x[t, :, 0:4] * 2
    return out


def read_between(x):
    out = torch.zeros_like(x)
    out[0] = x[0]
    for t in range(1, 3):
        out[t] = out[t - 1] * 0.5 + x[t]
    return out


def reshaped(x):
    y = x * 1.5
    alias = y
    y.unsqueeze_(1).mul_(2)
    y.squeeze_(1).transpose_(3, 4)
    return alias.transpose(3, 4) + x


BODIES = {
    "another shape": reshaped,
    "other names and views": seen_by_others,
    "through a view": through_a_view,
    "accumulated": accumulated,
    "ReLU in place": lambda x: [y := x - 0.5, F.relu(y, inplace=True), y][-1],
    "module in place": lambda x: [y := x - 0.5, nn.ReLU(inplace=True)(y), y][-1],
    "output argument": lambda x: [y := x * 2, torch.add(x, x, out=y), y][-1],
    "methods": changed(lambda y, x: y.mul_(2), lambda y, x: y.sub_(x).div_(2), lambda y, x: y.clamp_(0, 1)),
    "a step": changed(lambda y, x: y.__setitem__(1, x[0] * 2)),
    "a step is a number": changed(lambda y, x: y.__setitem__(1, 0)),
    "pixels are a number": changed(lambda y, x: y.__setitem__((..., slice(2, 4)), 0.5)),
    "a channel": changed(lambda y, x: y.__setitem__((slice(None), slice(None), 2), x[:, :, 0])),
    "copied": changed(lambda y, x: y.copy_(x)),
    "filled": changed(lambda y, x: y.zero_(), lambda y, x: y.add_(x)),
    "a part is added to": changed(lambda y, x: y[1].add_(x[0])),
    "every step": steps,
    "every step, backwards": lambda x: steps(x, (2, 1, 0)),
    "not every step": lambda x: steps(x, (0, 2)),
    "parts of steps": inside,
    "read while it is written": read_between,
}


@pytest.mark.parametrize("case", BODIES)
def test_changes_in_place_are_exact(case):
    torch.manual_seed(0)
    model = Net(BODIES[case]).eval()
    with torch.no_grad():
        model.conv.weight.mul_(6)
    try:
        program = capture(model, IMAGE)
    except UnsupportedError as error:
        if "is not an operation" in error.message or "indexing" in error.message:
            pytest.skip(error.message)
        raise
    assert check_capture(model, program) == 0.0
    x = torch.rand(4, 3, 8, 6) * 3
    model.lif.reset()
    with torch.no_grad():
        assert torch.equal(model(x), program(x)) and program(x).std() > 0


def test_a_view_of_a_changed_constant_is_refused():
    def body(x):
        out = torch.zeros_like(x)
        first = out[0]
        out[0] = x[0]
        return x + first

    with pytest.raises(UnsupportedError, match="a view of a tensor is read after"):
        capture(Net(body).eval(), IMAGE)


def test_a_view_of_a_tensor_whose_shape_and_values_changed_is_refused():
    def body(x):
        y = x * 1.5
        view = y[0]
        y.unsqueeze_(0)
        y.add_(1)
        return x + view

    with pytest.raises(UnsupportedError, match="after the tensor's shape"):
        capture(Net(body).eval(), IMAGE)


def test_a_model_may_change_its_input():
    class Changing(Net):
        def forward(self, x):
            x.mul_(2).unsqueeze_(0)
            return super().forward(x[0])

    torch.manual_seed(0)
    model = Changing(lambda x: x).eval()
    program = capture(model, IMAGE)
    assert check_capture(model, program) == 0.0
    x = torch.rand(4, 3, 8, 6) * 3
    expected = program(x)
    assert torch.equal(reference(model, program, x), expected) and x.shape == (4, 3, 8, 6)
    assert torch.equal(EagerModel(Loaded(model, IMAGE, {}), program)(x)[0], expected) and float(x.max()) <= 3
