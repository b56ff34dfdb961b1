"""Random blocks over as many tokens as channels, where an operation along the wrong axis has the right size."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import nn

from support.random_blocks import Apply, Shape, each, spiking


def square(r: random.Random, s: Shape) -> tuple[nn.Module, Shape]:
    """Return layers and norms along channels or tokens of ``[T N, tokens, channels]``, both of which are C."""
    C = s.H * s.W
    along: list[Callable] = [
        lambda m, x: m.bn(m.linear(x)),
        lambda m, x: m.bn(m.linear(x).transpose(1, 2)).transpose(1, 2),
        lambda m, x: m.bn(m.linear(x.transpose(1, 2))),
        lambda m, x: m.bn(m.linear(x.transpose(1, 2)).transpose(1, 2)),
        lambda m, x: m.linear(m.bn(x)),
        lambda m, x: m.linear(m.bn(x.transpose(1, 2))),
        lambda m, x: m.bn(m.conv(x)),
        lambda m, x: m.bn(m.conv(x).transpose(1, 2)),
        lambda m, x: m.conv(m.bn(x.transpose(1, 2))),
        lambda m, x: m.linear(x) * m.gain + m.bias[:, None],
        lambda m, x: m.linear(x) * m.gain[:, None] + m.bias,
        lambda m, x: m.linear(m.norm(x.transpose(1, 2))),
        lambda m, x: m.linear(x) + x.transpose(1, 2),
        lambda m, x: m.linear(x @ x.transpose(1, 2)) * 0.2,
        lambda m, x: m.linear(x.transpose(1, 2) @ x) * 0.2,
        lambda m, x: m.linear(m.conv(x)),
        lambda m, x: m.linear(m.again(x).transpose(1, 2)),
    ]
    mix = r.choice(along)

    def run(m, x):
        y = m.fire(each(x, m.widen)).flatten(3).transpose(2, 3)
        y = mix(m, y.flatten(0, 1)).unflatten(0, y.shape[:2])
        return m.last(y).transpose(2, 3).unflatten(3, (s.H, s.W))

    gain, bias = (nn.Parameter(torch.rand(C) + offset) for offset in (0.5, -0.3))
    parts = {name: nn.Linear(C, C) for name in ("linear", "again")}
    body = Apply(
        run,
        widen=nn.Conv2d(s.C, C, 1),
        conv=nn.Conv1d(C, C, 1),
        bn=nn.BatchNorm1d(C),
        norm=nn.LayerNorm(C),
        gain=gain,
        bias=bias,
        fire=spiking(r),
        last=spiking(r),
        **parts,
    )
    return body, Shape(s.T, C, s.H, s.W)
