"""Neurons as people write them by hand: loops over time steps, of currents ``[T, ...]``."""

from __future__ import annotations

import torch
from torch import nn


class Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        return (v >= 0).float()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Exceeds(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, threshold):
        ctx.save_for_backward(v)
        return v.gt(threshold).float()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, levels):
        return torch.round(torch.clamp(v, 0, levels))

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def strict(x):
    """As in MS-ResNet."""
    mem, spike, out = 0, 0, torch.zeros_like(x)
    for t in range(x.shape[0]):
        mem = mem * 0.25 * (1 - spike) + x[t] if t else x[t]
        spike = Exceeds.apply(mem, 0.5)
        out[t] = spike
    return out


def charged_by_tau(x):
    """As in BrainCog."""
    mem, out = 0.0, []
    for current in x:
        mem = mem + (current - mem) / 3.0
        spike = Heaviside.apply(mem - 0.5)
        mem = mem * (1 - spike.detach())
        out.append(spike)
    return torch.stack(out)


def charged_by_rate(x):
    mem, out = 0.0, []
    for current in x:
        mem = mem + (current - mem) * 0.5744425168116589
        spike = (mem >= 1.0).float()
        mem = mem * (1 - spike)
        out.append(spike)
    return torch.stack(out)


def subtracts(x):
    mem, out = 0.0, []
    for current in x:
        mem = 0.9 * mem + current
        spike = Heaviside.apply(mem - 1.0)
        mem = mem - spike * 1.0
        out.append(spike.unsqueeze(0))
    return torch.cat(out, 0)


def scales_its_input(x):
    mem, out = 0.0, []
    for current in x:
        mem = 0.75 * mem + 0.25 * current
        spike = Heaviside.apply(mem - 0.3)
        mem = (1 - spike) * mem
        out.append(spike * 0.3)
    return torch.stack(out)


def halves(x):
    mem, out = torch.zeros_like(x[0]), []
    for current in x.unbind(0):
        mem = 0.5 * mem + current
        spike = (mem >= 1).float()
        mem = torch.where(mem >= 1, torch.zeros_like(mem), mem)
        out.append(spike)
    return torch.stack(out)


def sums(x):
    mem, out = 0.0, []
    for t in range(len(x)):
        mem = mem + x[t]
        spike = Heaviside.apply(mem - 1)
        mem = mem - spike
        out.append(spike)
    return torch.stack(out)


def counts(x):
    mem, out = 0.0, []
    for t in range(len(x)):
        mem = 0.25 * mem + x[t]
        spike = Rounded.apply(mem, 4)
        mem = mem - spike
        out.append(spike / 4)
    return torch.stack(out)


def time_second(x):
    x = x.transpose(0, 1)
    mem, out = 0.0, []
    for t in range(x.shape[1]):
        mem = 0.2 * mem + x[:, t]
        spike = (mem > 0.5).float()
        mem = mem * (1 - spike)
        out.append(spike)
    return torch.stack(out, 1).transpose(0, 1)


def bends(x):
    """No neuron with known dynamics: the current is bent, and the threshold rises with each spike."""
    mem, threshold, out = 0.0, 0.5, []
    for current in x:
        mem = 0.5 * mem + torch.relu(current) * current
        spike = Heaviside.apply(mem - threshold)
        mem = mem * (1 - spike)
        threshold = threshold + 0.1 * spike
        out.append(spike)
    return torch.stack(out)


class Net(nn.Module):
    """Layers with a neuron each, in the style of a convolutional network; an image is shown at every step.

    Args:
        fires: what the neurons compute.
        steps: T.
        depth: number of layers.
    """

    def __init__(self, fires, steps: int = 4, depth: int = 2, width: int = 8) -> None:
        super().__init__()
        self.fires, self.steps = fires, steps
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else width, width, 3, padding=1) for i in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth))
        self.head = nn.Linear(width, 5)
        generator = torch.Generator().manual_seed(0)
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 2.0, 3.0, generator=generator)
            nn.init.uniform_(norm.bias, 0.2, 0.6, generator=generator)

    def forward(self, x):
        x = x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = norm(conv(x.flatten(0, 1)))
            x = self.fires(y.reshape(self.steps, -1, *y.shape[1:]))
        return self.head(x.flatten(3).mean(-1)).mean(0)
