"""What a forward asks of values: what can be answered without them, and errors for the rest."""

from __future__ import annotations

import einops
import pytest
import torch
from torch import nn

from svitc.driver.load import check_capture
from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec

IMAGE = InputSpec((3, 8, 6))


class Net(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.conv, self.head = function, nn.Conv2d(3, 8, 3, 1, 1), nn.Linear(8, 5)
        self.rates: list = []

    def forward(self, *inputs):
        x = self.function(self, self.conv(inputs[0]))
        return self.head(x.mean((2, 3)))


def finite(net, x):
    assert not torch.isnan(x).any()
    assert torch.isfinite(x).all(), "not finite"
    return x


def asserted(net, x):
    assert (x < 1e9).all() and x.abs().max() >= 0
    assert isinstance(x, torch.Tensor) and not isinstance(x, (list, nn.Parameter))
    return x


def counted(net, x):
    net.rates.append(x.mean().item() * 100)
    text = f"{net.rates[-1]:.2f} {x.mean():.3f}"
    return x if text else x * 2


def attributes(net, x):
    return x * 2 if hasattr(x, "mask") or getattr(x, "tensors", None) is not None else x


def tried(net, x):
    try:
        return x.decompose()
    except AttributeError:
        return x * 2


def grown(net, x):
    out = torch.tensor([])
    for row in x.split(2, 2):
        out = torch.cat([out, row], 2)
    return out


@torch.jit.script
def scripted(x, factor: float):
    return x * factor


SCRIPTED = torch.jit.script(nn.ReLU())
compiled = torch.compile(lambda x: x * 2)
ANSWERED = {
    "finite": finite,
    "asserted": asserted,
    "counted": counted,
    "attributes": attributes,
    "tried": tried,
    "grown": grown,
    "einops": lambda net, x: einops.reduce(x, "n c (h a) (w b) -> n c h w", "max", a=2, b=3),
    "packed": lambda net, x: einops.pack([x, x], "n * h w")[0][:, :8],
    "compiled": lambda net, x: compiled(x),
    "scripted": lambda net, x: scripted(x, 0.5),
    "copied": lambda net, x: torch.tensor(torch.as_tensor(x)),
    "a tensor's type": lambda net, x: x.type(torch.FloatTensor),
    "inference mode": lambda net, x: torch.inference_mode()(lambda y: net.conv(y[:, :3]))(x),
    "number of elements": lambda net, x: x / (torch.numel(x) // x.shape[0]),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_what_needs_no_values_is_answered(name):
    torch.manual_seed(0)
    model = Net(ANSWERED[name]).eval()
    program = capture(model, IMAGE)
    assert check_capture(model, program) == 0.0
    notes = " ".join(program.info.get("assumptions", []))
    assert ("what the model checks of values is taken to hold" in notes) == (name in ("finite", "asserted"))


class Box:
    def __init__(self, value) -> None:
        self.value = value


REFUSED = {
    "a branch": (lambda net, x: x if x.sum() > 0 else -x, "the truth of a tensor"),
    "a number": (lambda net, x: x * x.mean().item(), "the value of a tensor"),
    "a compared number": (lambda net, x: x if x.mean().item() > 0 else -x, "the value of a tensor"),
    "an equal number": (lambda net, x: x if x.sum().item() == 0 else -x, "the value of a tensor"),
    "an array": (lambda net, x: torch.from_numpy(x.numpy()), "the value of a tensor"),
    "scripted": (lambda net, x: SCRIPTED(x), "torch.jit.script"),
    "an unbound method": (lambda net, x: torch.Tensor.mul(x, 2), "a method called on its class"),
    "an object": (lambda net, x: torch.relu(Box(x)), "Box"),
    "a mask": (lambda net, x: x * x[x > 0].mean(), "whose size depends on the data"),
    "several samples": (lambda net, x: (x.flatten(1) @ x.flatten(1).t() @ x.flatten(1)).reshape(x.shape), "batch"),
    "autocast": (lambda net, x: torch.autocast("cpu", dtype=torch.bfloat16)(net.conv)(x[:, :3]), "autocast"),
}


class Settings(dict):
    __getattr__ = dict.__getitem__


def test_a_model_that_cannot_be_copied_is_refused():
    model = Net(lambda net, x: x).eval()
    model.settings = Settings(scale=1)
    with pytest.raises(UnsupportedError, match="cannot be copied.*__deepcopy__"):
        capture(model, IMAGE)


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_values_is_refused_with_the_users_line(name):
    function, text = REFUSED[name]
    with pytest.raises(UnsupportedError, match=text) as caught:
        capture(Net(function).eval(), IMAGE)
    assert "test_data_dependent.py" in str(caught.value) and caught.value.hint


class Logging(nn.Module):
    """A layer that keeps the mean of what it gives, as a number."""

    def forward(self, x):
        y = x * 2
        self.rate = float(y.detach().mean().item())
        return y


def test_a_number_is_kept_however_often_the_code_has_run():
    """Python rewrites a function's instructions once it has run eight times or so."""

    def logged(net, x):
        for _ in range(20):
            x = net.log(x) * 0.5
        return x

    model = Net(logged).eval()
    model.log = Logging()
    assert check_capture(model, capture(model, IMAGE)) == 0.0
