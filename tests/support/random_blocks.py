"""Random parts of spiking networks: neurons, convolutions, branches, attention, real-valued layers, moved elements."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Time steps, channels, height and width of a value ``[T, N, C, H, W]``."""

    T: int
    C: int
    H: int
    W: int


class Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x >= 0).float()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class HandWritten(nn.Module):
    """A neuron that a loop over time writes out, in one of the ways in which people do."""

    def __init__(self, decay: float, threshold: float, soft: bool, style: str) -> None:
        super().__init__()
        self.decay, self.threshold, self.soft, self.style = decay, threshold, soft, style

    def forward(self, x):
        membrane, spikes = torch.zeros_like(x[0]), []
        out = torch.zeros_like(x)
        for t in range(x.shape[0]):
            membrane = membrane * self.decay + x[t]
            if self.style == "function":
                spike = Heaviside.apply(membrane - self.threshold)
            elif self.style == "comparison":
                spike = (membrane > self.threshold).float()
            else:
                spike = membrane.ge(self.threshold).to(x.dtype)
            membrane = membrane - self.threshold * spike if self.soft else membrane * (1 - spike)
            spikes.append(spike)
            out[t] = spike
        return out if self.style == "written" else torch.stack(spikes)


class Steps(nn.Module):
    """A single-step neuron that is called in a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.node = neuron.LIFNode(v_threshold=0.5, step_mode="s")

    def forward(self, x):
        return torch.stack([self.node(x[t]) for t in range(x.shape[0])])


class Standardized(nn.Conv2d):
    """A convolution that standardizes its weights whenever it is called."""

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, w * 0.3, self.bias)


class Apply(nn.Module):
    """A function of ``[T, N, C, H, W]`` and of parts of its own."""

    def __init__(self, function: Callable, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, value in parts.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.function(self, x)


def each(x, call):
    """Call a layer on time and batch as one dimension."""
    y = call(x.flatten(0, 1))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def spiking(r: random.Random) -> nn.Module:
    """Return a random neuron."""
    threshold = r.choice((0.3, 0.5, 1.0))
    make = [
        lambda: neuron.LIFNode(v_threshold=threshold, step_mode="m"),
        lambda: neuron.LIFNode(tau=r.choice((1.5, 2.0, 4.0)), v_reset=None, v_threshold=threshold, step_mode="m"),
        lambda: neuron.LIFNode(decay_input=False, v_threshold=threshold, step_mode="m"),
        lambda: neuron.IFNode(v_threshold=threshold, step_mode="m"),
        lambda: neuron.ParametricLIFNode(v_threshold=threshold, step_mode="m"),
        lambda: HandWritten(r.choice((0.25, 0.5, 0.9)), threshold, r.random() < 0.5, r.choice(STYLES)),
        Steps,
        lambda: Apply(lambda s, x: torch.round(torch.clamp(x, 0, 4)) / 4),
        lambda: layer.MultiStepContainer(neuron.IFNode(v_threshold=threshold)),
    ]
    return r.choice(make)()


STYLES = ("function", "comparison", "written", "method")


def convolution(r: random.Random, s: Shape, width: int | None = None) -> tuple[nn.Module, Shape]:
    """Return a convolution with batch norm and neuron, of one of several kinds."""
    width = width or r.choice((8, 12, 16))
    kind = r.choice(("plain", "bias", "standardized", "weight_norm", "pointwise", "spikingjelly", "groups"))
    kernel = 1 if kind == "pointwise" else 3
    conv: nn.Module
    if kind == "standardized":
        conv = Standardized(s.C, width, 3, padding=1)
    elif kind == "groups" and s.C % 4 == 0 and width % 4 == 0:
        conv = nn.Conv2d(s.C, width, 3, padding=1, groups=4)
    else:
        conv = nn.Conv2d(s.C, width, kernel, padding=kernel // 2, bias=kind != "plain")
    if kind == "weight_norm":
        conv = nn.utils.parametrizations.weight_norm(conv)
    norm, fire = nn.BatchNorm2d(width), spiking(r)
    if kind == "spikingjelly":
        run = nn.Sequential(
            layer.Conv2d(s.C, width, 3, padding=1, bias=False, step_mode="m"),
            layer.BatchNorm2d(width, step_mode="m"),
            fire,
        )
        return run, Shape(s.T, width, s.H, s.W)
    body = Apply(lambda m, x: m.fire(each(x, lambda y: m.norm(m.conv(y)))), conv=conv, norm=norm, fire=fire)
    return body, Shape(s.T, width, s.H, s.W)


def residual(r: random.Random, s: Shape) -> tuple[nn.Module, Shape]:
    """Return two branches that meet: by addition, products, IAND, maximum, concatenation or a choice."""
    first, _ = convolution(r, s, s.C)
    second, _ = convolution(r, s, s.C)
    meet = r.choice(
        (
            lambda x, y: x + y,
            lambda x, y: x * y,
            lambda x, y: (1 - x) * y,
            lambda x, y: x - y * 0.5,
            torch.maximum,
            lambda x, y: torch.where(x > 0.5, y, x),
            lambda x, y: x + (y - x).relu(),
        )
    )
    return Apply(lambda m, x: meet(m.first(x), m.second(x)), first=first, second=second), s


def joined(r: random.Random, s: Shape) -> tuple[nn.Module, Shape]:
    """Return branches whose channels are concatenated, and perhaps split again."""
    width = r.choice((4, 8))
    first, _ = convolution(r, s, width)
    second, _ = convolution(r, s, 8)
    body = Apply(lambda m, x: torch.cat([m.first(x), m.second(x)], 2), first=first, second=second)
    return body, Shape(s.T, width + 8, s.H, s.W)


def attention(r: random.Random, s: Shape) -> tuple[nn.Module, Shape]:
    """Return self-attention of spikes over pixels, with heads, or by softmax."""
    heads = r.choice([h for h in (1, 2, 4) if s.C % h == 0])
    kind = r.choice(("spikes", "einsum", "softmax", "linear"))

    def attend(m, x):
        T, N, C, H, W = x.shape
        tokens = x.flatten(3).transpose(2, 3)

        def split(y):
            return y.reshape(T, N, H * W, heads, C // heads).transpose(2, 3)

        q, k, v = (split(fire(project(tokens))) for project, fire in ((m.q, m.qf), (m.k, m.kf), (m.v, m.vf)))
        if kind == "einsum":
            a = torch.einsum("tbhnd,tbhmd->tbhnm", q, k) * 0.125
            y = torch.einsum("tbhnm,tbhmd->tbhnd", a, v)
        elif kind == "softmax":
            y = F.softmax(q @ k.transpose(-2, -1) * 0.3, dim=-1) @ v
        elif kind == "linear":
            y = q @ (k.transpose(-2, -1) @ v) * 0.125
        else:
            y = (q @ k.transpose(-2, -1)) @ v * 0.125
        y = y.transpose(2, 3).reshape(T, N, H * W, C)
        return m.out(m.proj(y)).transpose(2, 3).reshape(T, N, C, H, W) + x

    linear = {name: nn.Linear(s.C, s.C) for name in ("q", "k", "v", "proj")}
    fires = {name: spiking(r) for name in ("qf", "kf", "vf", "out")}
    return Apply(attend, **linear, **fires), s


def mlp(r: random.Random, s: Shape) -> tuple[nn.Module, Shape]:
    """Return a real-valued MLP over channels, with a norm and an activation."""
    norm = r.choice((nn.LayerNorm(s.C), nn.Identity()))
    act = r.choice((nn.GELU(), nn.SiLU(), nn.ReLU(), nn.Hardswish(), nn.Sigmoid()))

    def run(m, x):
        y = m.second(m.act(m.first(m.norm(x.permute(0, 1, 3, 4, 2))))).permute(0, 1, 4, 2, 3)
        return m.fire(x + y * m.scale)

    parts = {"norm": norm, "act": act, "first": nn.Linear(s.C, 2 * s.C), "second": nn.Linear(2 * s.C, s.C)}
    scale = nn.Parameter(torch.rand(s.C, 1, 1))
    return Apply(run, **parts, fire=spiking(r), scale=scale), s


def views(r: random.Random, s: Shape) -> tuple[nn.Module, Shape]:
    """Return an operation that moves or selects elements, or adds constants."""
    p = nn.Parameter(torch.randn(1, 1, s.C, s.H, s.W) * 0.2)
    choices: list[tuple[Callable, Shape]] = [
        (lambda m, x: x.roll(1, -1), s),
        (lambda m, x: x.flip(3), s),
        (lambda m, x: x + m.p, s),
        (lambda m, x: x * torch.sigmoid(m.p), s),
        (lambda m, x: torch.cat([x[:1], x[1:] - x[:-1] * 0.5]) if x.shape[0] > 1 else x, s),
        (lambda m, x: torch.stack([x[t] for t in range(x.shape[0])]), s),
        (lambda m, x: x[:, :, : x.shape[2] // 2], Shape(s.T, s.C // 2, s.H, s.W)),
        (lambda m, x: x * x.mean((-1, -2), keepdim=True).sigmoid(), s),
        (lambda m, x: x - x.amax(2, keepdim=True) * 0.1, s),
    ]
    if s.H % 2 == 0 and s.W % 2 == 0:
        half = Shape(s.T, s.C, s.H // 2, s.W // 2)
        choices += [
            (lambda m, x: each(x, lambda y: F.max_pool2d(y, 2)), half),
            (lambda m, x: each(x, lambda y: F.avg_pool2d(y, 2)), half),
            (lambda m, x: x[..., ::2, 1::2], half),
            (lambda m, x: each(x, lambda y: F.adaptive_avg_pool2d(y, (s.H // 2, s.W // 2))), half),
            (lambda m, x: each(x, lambda y: F.interpolate(F.max_pool2d(y, 2), scale_factor=2)), s),
            (lambda m, x: each(x, lambda y: F.pad(y[..., 1:-1], (1, 1, 0, 0), mode="reflect")) if s.W > 4 else x, s),
        ]
    function, shape = r.choice(choices)
    return Apply(function, p=p), shape


BLOCKS = (convolution, residual, joined, attention, mlp, views)
