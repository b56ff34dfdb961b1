"""What a model is changed to before it is captured, and small constructs that models are full of."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional as F

from support import published_parts as parts
from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.frontends.capture.model_rewrites import border_of, logits_of, prepare
from svitc.ir import ops
from svitc.ir.graph import InputSpec

IMAGE = InputSpec((3, 8, 6))


class Padded(nn.Module):
    """The border of zeros comes first, as it should."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(F.pad(x, (2, 2, 2, 2)))


class Wrong(Padded):
    """The border is left at zero."""

    def forward(self, x):
        return F.pad(self.norm(x), (1, 1, 1, 1))


class Fails(Padded):
    def forward(self, x):
        raise RuntimeError("only my own shapes")


@pytest.mark.parametrize(
    ("module", "border", "exact"),
    [
        (parts.BorderNorm(1, 24), 1, False),
        (parts.BorderNorm(2, 24), 2, False),
        (Padded(), 2, True),
        (Wrong(), 0, False),
        (Fails(), 0, False),
        (nn.Sequential(nn.BatchNorm2d(3)), 0, False),
        (nn.BatchNorm2d(3), 0, False),
        (parts.RepConv(3, 3), 0, False),
    ],
)
def test_a_border_is_found_by_what_a_module_does(module, border, exact):
    before = {k: v.clone() for k, v in module.state_dict().items()}
    assert border_of(module) == (border, exact)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_prepare_pads_first_and_keeps_the_names():
    torch.manual_seed(0)
    model = nn.Sequential(parts.RepConv(3, 4), nn.BatchNorm2d(4)).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            nn.init.normal_(m.bias)
    x = torch.randn(2, 3, 5, 6)
    keys, want = list(model.state_dict()), model(x)
    assert prepare(model) == ["0.body.1"]
    assert list(model.state_dict()) == keys
    assert abs(model(x) - want).max() < 1e-5 and want.std() > 0.1
    assert prepare(model) == []


@pytest.mark.parametrize("output", [(1,), {"logits": 1}, (1, None), (1, {}), [1]])
def test_logits_are_found_in_what_a_model_returns(output):
    x = torch.ones(2)
    filled = {"logits": x} if isinstance(output, dict) else type(output)(x if o == 1 else o for o in output)
    assert logits_of(filled) is x


class Net(nn.Module):
    """A host: ``body`` maps spikes [T, N, C, H, W] to what the model returns."""

    def __init__(self, body, width: int = 8) -> None:
        super().__init__()
        self.conv, self.lif = layer.Conv2d(3, 8, 3, padding=1, step_mode="m"), neuron.LIFNode(step_mode="m")
        self.head, self.body = nn.Linear(width, 5), body

    def forward(self, x):
        return self.body(self, self.lif(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1))))


def mean(net, x):
    return net.head(x.mean((0, 3, 4)))


REFUSED = {
    "none": (lambda net, x: {}, "returns no tensor"),
    "across the batch": (lambda net, x: x.mean((0, 1, 3)), "it runs across the batch"),
    "one for all": (lambda net, x: net.head(x.sum((0, 1, 3, 4))), "it runs across the batch"),
    "samples by samples": (lambda net, x: x.sum((0, 3, 4)).T @ x.sum((0, 3, 4)), "it runs across the batch"),
    "an attribute": (lambda net, x: x.real.sum((0, 3, 4)), "a tensor's real is not an operation"),
    "all samples flat": (lambda net, x: x.mean((0, 3, 4)).flatten(), "the batch is merged with other dimensions"),
    "in place, in a part": (lambda net, x: (x.chunk(2, 2)[0].mul_(2), mean(net, x))[1], "part of a split tensor"),
}


UNPLACED = ("none", "all samples flat")  # what is returned has no line of its own


def augmented(x):
    y = x
    y += x * 2
    return y + x


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    body, message = REFUSED[case]
    with pytest.raises(UnsupportedError) as caught:
        capture(Net(body), IMAGE)
    assert message in str(caught.value)
    assert caught.value.where is None if case in UNPLACED else __file__ in caught.value.where


CAPTURED = {
    "hooks": lambda net, x: (mean(net, x), {}),
    "padding by a function": lambda net, x: mean(net, F.pad(x.flatten(0, 1), (1, 2, 0, 1)).unflatten(0, (2, -1))),
    "padding of one dimension": lambda net, x: mean(net, F.pad(x.flatten(0, 1), [1, 1]).unflatten(0, (2, -1))),
    "numbers that change nothing": lambda net, x: mean(net, (0.0 + x * 1 - 0) / 1.0),
    "dead operations": lambda net, x: (torch.softmax(x, 2), mean(net, x))[1],
    "augmented once": lambda net, x: mean(net, augmented_once(x * 1.5)),
    "augmented": lambda net, x: mean(net, augmented(x)),
    "in place": lambda net, x: mean(net, x.mul_(2) + x),
    "in place, unread": lambda net, x: (x.mul_(2), mean(net, x))[1],
    "attributes": lambda net, x: net.head((x.mT.mT.data * 0.5).sum((0, 3, 4)).T.T),
}


def augmented_once(x):
    x += 0.0
    x *= 2
    return x


@pytest.mark.parametrize("case", CAPTURED)
def test_captured(case):
    torch.manual_seed(0)
    model = Net(CAPTURED[case]).eval()
    with torch.no_grad():
        model.conv.weight.mul_(6)
        x = torch.randn(2, 3, 8, 6)
        model.lif.reset()
        want = logits_of(model(x))
    assert torch.equal(capture(model, IMAGE)(x), want) and want.std() > 0


def test_pooling_in_a_window_one_wide_is_pooling_over_two_dimensions():
    class Pooled(Net):
        def __init__(self) -> None:
            super().__init__(lambda net, x: mean(net, net.average(net.most(x))))
            self.most = nn.MaxPool3d((1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 0))
            self.average = nn.AvgPool3d((1, 2, 2), stride=1)

    torch.manual_seed(0)
    model = Pooled().eval()
    program = capture(model, IMAGE)
    kinds = [type(program.module_of(n)) for n in program.graph.nodes if n.op == "call_module"]
    assert [k for k in kinds if k in ops.POOLS] == [nn.MaxPool2d, nn.AvgPool2d]
    x = torch.randn(2, 3, 8, 6)
    with torch.no_grad():
        assert torch.equal(program(x), model(x))
