"""Calls that consist of others equal PyTorch's own, as functions of tensors and through a capture."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn
from torch.nn import functional as F

from svitc.driver.load import check_capture
from svitc.frontends.capture import composites
from svitc.frontends.capture.capture import capture
from svitc.frontends.capture.op_handlers import HANDLERS
from svitc.ir.graph import InputSpec

X, Y = (torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(i)) * 3 for i in (0, 1))
X[0, 0] = 0
CALLS = [
    ("eq", torch.eq, (X, Y)),
    ("ne", torch.ne, (X, 0)),
    ("heaviside", torch.heaviside, (X, torch.tensor(1.0))),
    ("heaviside", torch.heaviside, (X, torch.tensor(0.3))),
    ("threshold", F.threshold, (X, 0.5, 0.1)),
    ("glu", F.glu, (X, 1)),
    ("softshrink", F.softshrink, (X, 0.3)),
    ("hardshrink", F.hardshrink, (X, 0.3)),
    ("tanhshrink", F.tanhshrink, (X,)),
    ("softsign", F.softsign, (X,)),
    ("logsigmoid", F.logsigmoid, (X,)),
    ("selu", F.selu, (X,)),
    ("celu", F.celu, (X, 2.0)),
    ("rrelu", F.rrelu, (X,)),
    ("expm1", torch.expm1, (X,)),
    ("log1p", torch.log1p, (X.abs(),)),
    ("log2", torch.log2, (X.abs() + 0.1,)),
    ("log10", torch.log10, (X.abs() + 0.1,)),
    ("frac", torch.frac, (X,)),
    ("lerp", torch.lerp, (X, Y, 0.3)),
    ("addcmul", torch.addcmul, (X, Y, Y)),
    ("addcdiv", torch.addcdiv, (X, Y, Y.abs() + 1)),
    ("floordiv", torch.floor_divide, (X, 0.3)),
    ("mod", torch.remainder, (X, 2)),
    ("fmod", torch.fmod, (X, 2)),
    ("tril", torch.tril, (X, 1)),
    ("triu", torch.triu, (X, -1)),
    ("diagonal", torch.diagonal, (X, 1, 2, 3)),
    ("diagonal", torch.diagonal, (X, -2, 3, 2)),
    ("diagonal", torch.diagonal, (X,)),
    ("rot90", torch.rot90, (X, 1, (2, 3))),
    ("rot90", torch.rot90, (X, -1, (0, 2))),
    ("rot90", torch.rot90, (X, 2, (2, 3))),
    ("atleast_3d", torch.atleast_3d, (X[0, 0],)),
    ("atleast_2d", torch.atleast_2d, (X[0, 0, 0],)),
    ("cdist", torch.cdist, (X, Y)),
    ("pairwise_distance", F.pairwise_distance, (X, Y)),
    ("local_response_norm", F.local_response_norm, (X, 3)),
]


@pytest.mark.parametrize("name, function, args", CALLS, ids=[f"{name}{i}" for i, (name, *_) in enumerate(CALLS)])
def test_a_composite_equals_the_call(name, function, args):
    got, want = composites.COMPOSITES[name](*args), function(*args)
    assert got.shape == want.shape
    if name in composites.ROUNDED:
        assert torch.allclose(got.to(want.dtype), want, atol=1e-6 * float(want.abs().max()), rtol=1e-5)
    else:
        assert torch.equal(got.to(want.dtype), want)


def test_no_composite_hides_a_handler():
    assert not set(composites.COMPOSITES) & set(HANDLERS)
    assert set(composites.COMPOSITES) >= composites.ROUNDED


class Net(nn.Module):
    """A convolution with neurons, a function of spikes ``[T, N, C, H, W]``, and a head."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.conv, self.lif = nn.Conv2d(3, 8, 3, 1, 1), neuron.LIFNode(step_mode="m", v_threshold=0.2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.lif(self.conv(x).unsqueeze(0).repeat(2, 1, 1, 1, 1))
        return self.head(self.function(x).float().mean((3, 4))).mean(0)


MASK = torch.rand(8, generator=torch.Generator().manual_seed(2)) > 0.4
TRACED = {
    "equal": lambda x: x * (x == 1),
    "not None": lambda x: x * 2 if x != None else x,  # noqa: E711
    "registered operation": lambda x: torch.ops.aten.relu.default(torch.ops.aten.add.Tensor(x, x)),
    "rounding mode": lambda x: torch.div(x * 5, 2, rounding_mode="floor"),
    "diagonal of an einsum": lambda x: x + torch.einsum("tnchh->tnch", x).unsqueeze(-1),
    "two numbers": lambda x: torch.where(x > 0.5, 0.7, 0.1),
    "repeats": lambda x: x.repeat_interleave(torch.tensor([2, 0, 1, 1, 1, 1, 1, 1]), dim=2),
    "lower triangle": lambda x: torch.tril(x),
    "view_as": lambda x: x.flatten(2).view_as(x),
    "rotated": lambda x: torch.rot90(x, 1, (3, 4)),
    "hsplit": lambda x: torch.cat(torch.hsplit(x.transpose(1, 2), 2)[::-1], 1).transpose(1, 2),
    "squeezed": lambda x: x.unsqueeze(0).squeeze(),
    "two lists": lambda x: x + x[:, :, :, [0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0]].unsqueeze(-1),
    "separate lists": lambda x: x * x[:, :, [0, 1], :, [2, 3]].mean(0)[:, :, None, :, None],
    "a mask": lambda x: torch.cat([x[:, :, MASK], x[:, :, ~MASK]], 2),
    "a matrix of positions": lambda x: x[..., torch.arange(8).reshape(2, 4)].flatten(-2),
    "assigned": lambda x: _assigned(x),
}


def _assigned(x):
    y = torch.zeros_like(x)
    y[:, :, :4, :, 1:] = x[:, :, :4, :, :-1]
    y[:, :, 5, 2:] = x[:, :, 5, :6]
    return y


@pytest.mark.parametrize("name", TRACED)
def test_a_call_that_consists_of_others_is_captured_exactly(name):
    torch.manual_seed(0)
    model = Net(TRACED[name]).eval()
    program = capture(model, InputSpec((3, 8, 8)))
    assert check_capture(model, program) == 0.0
