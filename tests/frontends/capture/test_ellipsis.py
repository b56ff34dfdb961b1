"""Patterns of einops with an ellipsis, whose letters depend on the number of dimensions."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import nn

from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec


class Net(nn.Module):
    """Repeats images for each time step and rearranges them, both by patterns with an ellipsis."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, x):
        x = repeat(x, "b ... -> t b ...", t=2)
        x = rearrange(x, "t b c ... -> t b ... c")
        return self.head(x.mean((2, 3))).mean(0)


def test_patterns_with_an_ellipsis_are_exact():
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(4, 3, 6, 8)
    with torch.no_grad():
        assert torch.equal(capture(model, InputSpec((3, 6, 8)))(x), model(x))
