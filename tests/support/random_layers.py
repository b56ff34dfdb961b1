"""Further random parts: neurons and layers of SpikingJelly, norms, windows, tokens and loops over time."""

from __future__ import annotations

import random
from collections.abc import Callable

import einops
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional as F

from support.random_blocks import Apply, Heaviside, Shape, convolution, each, spiking


class Rectangle(nn.Module):
    """An autograd function's spike of a sum over time, with a learned decay and threshold."""

    def __init__(self, reset: str) -> None:
        super().__init__()
        self.decay, self.threshold, self.reset = (
            nn.Parameter(torch.rand(1)),
            nn.Parameter(torch.rand(1) * 0.5 + 0.3),
            reset,
        )

    def forward(self, x):
        v, spike, spikes = 0.0, 0.0, []
        for step in x.unbind(0):
            v = (
                self.decay.sigmoid() * v * (1 - spike) + step
                if self.reset == "late"
                else self.decay.sigmoid() * v + step
            )
            spike = Heaviside.apply(v - self.threshold)
            if self.reset == "soft":
                v = v - spike * self.threshold
            spikes.append(spike)
        return torch.stack(spikes, 0)


class Started(neuron.LIFNode):
    """A neuron whose membrane starts between rest and threshold."""

    def __init__(self) -> None:
        super().__init__(v_threshold=0.7, step_mode="m")
        self._memories_rv["v"] = self.v = 0.25


class PerChannel(nn.Module):
    """A neuron with a decay and a threshold of each channel ``[T, N, C, H, W]``."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(C, 1, 1))
        self.register_buffer("threshold", torch.rand(C, 1, 1) * 0.5 + 0.3)

    def forward(self, x):
        v, out = torch.zeros_like(x[0]), []
        for t in range(x.size(0)):
            v = v + (x[t] - v) * torch.sigmoid(self.decay)
            spike = (v >= self.threshold).to(v)
            v = torch.where(spike > 0, torch.zeros_like(v), v)
            out.append(spike)
        return torch.stack(out, dim=0)


def rare_neuron(r: random.Random, s: Shape) -> nn.Module:
    """Return a neuron of SpikingJelly or of a user, of which there are fewer in public."""
    make: list[Callable[[], nn.Module]] = [
        lambda: neuron.QIFNode(v_threshold=0.6, step_mode="m"),
        lambda: neuron.EIFNode(v_threshold=0.6, step_mode="m"),
        lambda: neuron.IzhikevichNode(v_threshold=0.6, step_mode="m"),
        lambda: neuron.KLIFNode(v_threshold=0.5, scale_reset=r.random() < 0.5, step_mode="m"),
        lambda: neuron.ILIFNode(step_mode="m"),
        lambda: neuron.GatedLIFNode(s.T, init_v_threshold=0.5),
        lambda: neuron.ComplementaryLIFNode(v_threshold=0.6, step_mode="m"),
        lambda: neuron.LIAFNode(torch.relu, False, v_threshold=0.5, step_mode="m"),
        lambda: neuron.PSN(s.T),
        lambda: neuron.MaskedPSN(2, s.T, lambda_init=1.0, step_mode="m"),
        lambda: neuron.SlidingPSN(2, step_mode="m"),
        lambda: Rectangle(r.choice(("late", "soft", "none"))),
        Started,
        lambda: PerChannel(s.C),
        lambda: neuron.LIFNode(v_reset=-0.1, v_threshold=0.5, step_mode="m"),
    ]
    return r.choice(make)()


def norm(r: random.Random, s: Shape) -> nn.Module:
    """Return a norm of ``[T, N, C, H, W]``."""
    scale = nn.Parameter(torch.rand(s.T, 1, 1, 1, 1) + 0.5)
    make: list[Callable[[], nn.Module]] = [
        lambda: layer.BatchNorm2d(s.C, step_mode="m"),
        lambda: layer.ThresholdDependentBatchNorm2d(1.0, 1.0, s.C),
        lambda: layer.TemporalEffectiveBatchNorm2d(s.T, s.C),
        lambda: layer.GroupNorm(2 if s.C % 2 == 0 else 1, s.C, step_mode="m"),
        lambda: Apply(lambda m, x: each(x, m.norm) * m.scale, norm=nn.BatchNorm2d(s.C), scale=scale),
        lambda: Apply(
            lambda m, x: torch.stack([m.norms[t](x[t]) for t in range(s.T)]),
            norms=nn.ModuleList(nn.BatchNorm2d(s.C) for _ in range(s.T)),
        ),
        lambda: Apply(lambda m, x: each(x, m.norm), norm=nn.InstanceNorm2d(s.C, affine=True)),
        lambda: Apply(lambda m, x: m.norm(x), norm=nn.LayerNorm((s.C, s.H, s.W))),
        lambda: Apply(lambda m, x: m.norm(x.movedim(2, -1)).movedim(-1, 2), norm=nn.RMSNorm(s.C)),
        lambda: Apply(
            lambda m, x: x * m.gain[:, None, None] + m.bias.view(1, 1, -1, 1, 1),
            gain=nn.Parameter(torch.rand(s.C) + 0.5),
            bias=nn.Parameter(torch.rand(s.C) * 0.3),
        ),
    ]
    return r.choice(make)()


def layers(r: random.Random, s: Shape) -> tuple[nn.Module, Shape]:
    """Return a convolution of a less usual form, a norm and a neuron."""
    even = s.H % 2 == 0 and s.W % 2 == 0 and s.H > 2
    half, double = Shape(s.T, 12, s.H // 2, s.W // 2), Shape(s.T, 8, s.H * 2, s.W * 2)
    forms: list[tuple[Callable[[], nn.Module], Shape]] = [
        (lambda: nn.Conv2d(s.C, 2 * s.C, 3, padding=1, groups=s.C), Shape(s.T, 2 * s.C, s.H, s.W)),
        (lambda: nn.Conv2d(s.C, s.C, 3, padding=1, groups=s.C, bias=False), s),
        (lambda: nn.Conv2d(s.C, 12, 3, padding=2, dilation=2), Shape(s.T, 12, s.H, s.W)),
        (lambda: nn.Conv2d(s.C, 12, (1, 3), padding=(0, 1), padding_mode="circular"), Shape(s.T, 12, s.H, s.W)),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(s.C, 8, 1)), Shape(s.T, 8, s.H, s.W)),
        (
            lambda: nn.Sequential(nn.Conv2d(s.C, s.C, 3, 1, 1, groups=s.C), nn.Conv2d(s.C, 12, 1)),
            Shape(s.T, 12, s.H, s.W),
        ),
        (lambda: nn.Conv2d(s.C, 12, 3, padding="same"), Shape(s.T, 12, s.H, s.W)),
        (lambda: layer.WSConv2d(s.C, 12, 3, padding=1), Shape(s.T, 12, s.H, s.W)),
    ]
    if even:
        forms += [
            (lambda: nn.Conv2d(s.C, 12, 3, stride=2, padding=1), half),
            (lambda: nn.Conv2d(s.C, 12, 2, stride=2), half),
            (lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * s.C, 12, 1)), half),
        ]
    if s.H <= 4:
        forms.append((lambda: nn.ConvTranspose2d(s.C, 8, 2, stride=2), double))
    make, out = r.choice(forms)
    fire = rare_neuron(r, out) if r.random() < 0.5 else spiking(r)
    return Apply(lambda m, x: m.fire(m.norm(each(x, m.conv))), conv=make(), norm=norm(r, out), fire=fire), out


def heads_of(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Return tokens ``[T, N, L, C]`` as heads ``[T, N, heads, L, d]``."""
    T, N, L, C = x.shape
    return x.reshape(T, N, L, heads, C // heads).transpose(2, 3)


def fused(r: random.Random, s: Shape) -> tuple[nn.Module, Shape]:
    """Return attention with one projection for queries, keys and values, in a published form."""
    heads = r.choice([h for h in (1, 2, 4) if s.C % h == 0])
    kind = r.choice(("chunk", "unbind", "driven", "token", "sdpa", "bias", "class token"))
    qkv, proj = nn.Linear(s.C, 3 * s.C), nn.Linear(s.C, s.C)
    L = s.H * s.W

    def attend(m, x):
        y = m.norm(x.flatten(3).transpose(2, 3))
        if kind == "class token":
            y = torch.cat([m.token.expand(y.shape[0], y.shape[1], -1, -1), y], 2)
        y = m.fire(m.qkv(y))
        if kind == "unbind":
            q, k, v = y.reshape(*y.shape[:3], 3, heads, -1).permute(3, 0, 1, 4, 2, 5).unbind(0)
        else:
            q, k, v = (heads_of(part, heads) for part in y.chunk(3, -1))
        if kind == "driven":
            z = q * m.second(k.mul(v).sum(-2, keepdim=True))
        elif kind == "token":
            z = m.second(q.sum(-1, keepdim=True)) * (k + v)
        elif kind == "sdpa":
            z = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)).unflatten(
                0, q.shape[:2]
            )
        else:
            a = (q @ k.transpose(-2, -1)) * m.scale
            z = ((a + m.table[m.index]) if kind == "bias" else a) @ v
        z = z.transpose(2, 3).flatten(3)
        z = z[:, :, 1:] if kind == "class token" else z
        return x + m.out(m.proj(z).transpose(2, 3).unflatten(3, (x.shape[3], x.shape[4])))

    parts: dict[str, nn.Module | nn.Parameter] = {
        "norm": r.choice((nn.LayerNorm(s.C), nn.Identity())),
        "token": nn.Parameter(torch.randn(1, 1, 1, s.C) * 0.2),
        "table": nn.Parameter(torch.randn(2 * L, L) * 0.1),
        "scale": nn.Parameter(torch.tensor(0.1)),
    }
    body = Apply(attend, qkv=qkv, proj=proj, fire=spiking(r), second=spiking(r), out=spiking(r), **parts)
    body.register_buffer("index", torch.arange(L) * 2 % (2 * L))
    return body, s


def windows(r: random.Random, s: Shape) -> tuple[nn.Module, Shape]:
    """Return attention of spikes in windows, which join the batch, or a loop over strips."""
    w = r.choice([w for w in (1, 2, 3) if s.H % w == 0 and s.W % w == 0])
    kind = r.choice(("einops", "swin", "shifted"))

    def attend(m, x):
        T, N, C, H, W = x.shape
        y = x.roll((-1, -1), (3, 4)) if kind == "shifted" else x
        if kind == "einops":
            y = einops.rearrange(y, "t n c (h a) (w b) -> t (n h w) (a b) c", a=w, b=w)
        else:
            y = y.view(T, N, C, H // w, w, W // w, w).permute(0, 1, 3, 5, 4, 6, 2).reshape(T, -1, w * w, C)
        q, k, v = m.qf(m.q(y)), m.kf(m.k(y)), m.vf(m.v(y))
        z = m.proj((q @ k.transpose(-2, -1)) @ v * 0.125)
        if kind == "einops":
            z = einops.rearrange(z, "t (n h w) (a b) c -> t n c (h a) (w b)", h=H // w, w=W // w, a=w)
        else:
            z = z.view(T, N, H // w, W // w, w, w, C).permute(0, 1, 6, 2, 4, 3, 5).reshape(T, N, C, H, W)
        z = z.roll((1, 1), (3, 4)) if kind == "shifted" else z
        return m.out(z + x)

    linear = {name: nn.Linear(s.C, s.C) for name in ("q", "k", "v", "proj")}
    return Apply(attend, **linear, **{name: spiking(r) for name in ("qf", "kf", "vf", "out")}), s


def gathered(r: random.Random, s: Shape) -> tuple[nn.Module, Shape]:
    """Return a loop over time around layers, with what the last step gave, or several paths of channels."""
    conv, fire, twin = nn.Conv2d(s.C, s.C, 3, padding=1), neuron.LIFNode(v_threshold=0.5), spiking(r)

    def steps(m, x):
        out = []
        for t in range(x.shape[0]):
            out.append(m.fire(m.bn(m.conv(x[t]))) + (0.5 * out[-1] if out and m.again else 0))
        return torch.stack(out)

    def written(m, x):
        y = torch.zeros_like(x)
        for t in range(x.shape[0]):
            y[t] = m.fire(m.bn(m.conv(x[t])))
        return y

    def halves(m, x):
        a, b = x.split([s.C // 2, s.C - s.C // 2], 2)
        return torch.cat([m.twin(a), b], dim=2).roll(1, 2)

    def shuffled(m, x):
        return m.twin(each(x, lambda y: m.bn(m.conv(y)))).unflatten(2, (2, -1)).transpose(2, 3).flatten(2, 3)

    def excited(m, x):
        a = F.adaptive_avg_pool2d(x.flatten(0, 1), 1).flatten(1)
        return x * torch.sigmoid(m.linear(a)).view(x.shape[0], x.shape[1], -1, 1, 1)

    def mixed(m, x):
        return m.twin(m.time(x.movedim(0, -1)).movedim(-1, 0))

    kinds = [steps, written, excited, mixed, halves, *([shuffled] if s.C % 2 == 0 else [])]
    parts = {"linear": nn.Linear(s.C, s.C), "time": nn.Linear(s.T, s.T)}
    body = Apply(r.choice(kinds), conv=conv, bn=nn.BatchNorm2d(s.C), fire=fire, twin=twin, **parts)
    body.again = r.random() < 0.5
    return body, s


def moved(r: random.Random, s: Shape) -> tuple[nn.Module, Shape]:
    """Return an operation on spikes that changes no parameter."""
    order = list(range(s.C))
    r.shuffle(order)
    choices: list[tuple[Callable, Shape]] = [
        (lambda m, x: x[:, :, order], s),
        (lambda m, x: x.index_select(2, torch.tensor(order[::-1])), s),
        (lambda m, x: torch.cat([x, 1 - x], 2), Shape(s.T, 2 * s.C, s.H, s.W)),
        (lambda m, x: x.cumsum(0) * 0.5, s),
        (lambda m, x: x.repeat_interleave(2, dim=2), Shape(s.T, 2 * s.C, s.H, s.W)),
        (lambda m, x: F.normalize(x, dim=2), s),
        (lambda m, x: x.masked_fill(x < 0.5, -0.25), s),
        (lambda m, x: x - x.mean(0, keepdim=True), s),
        (lambda m, x: x / (x.sum(2, keepdim=True) + 1.0), s),
        (lambda m, x: each(x, lambda y: F.fold(F.unfold(y, 3, padding=1), y.shape[2:], 3, padding=1)) * 0.2, s),
        (lambda m, x: each(x, lambda y: F.avg_pool2d(y, 3, 1, 1)), s),
        (lambda m, x: each(x, lambda y: F.max_pool2d(y, 3, 1, 1)), s),
        (lambda m, x: x.transpose(3, 4).contiguous(), Shape(s.T, s.C, s.W, s.H)),
        (lambda m, x: m.layer(x), s),
        (lambda m, x: (x > x.mean((3, 4), keepdim=True)).float(), s),
        (lambda m, x: torch.einsum("tnchw,dc->tndhw", x, m.mix), s),
        (lambda m, x: x.pow(2) - 0.5 * x.abs(), s),
        (lambda m, x: torch.logical_and(x > 0.5, x.flip(4) > 0.5).float(), s),
    ]
    function, out = r.choice(choices)
    spikingjelly = r.choice((layer.Dropout(0.3, step_mode="m"), layer.MaxPool2d(3, 1, 1, step_mode="m")))
    return Apply(function, layer=spikingjelly, mix=nn.Parameter(torch.randn(s.C, s.C) * 0.3)), out


def branch(r: random.Random, s: Shape) -> tuple[nn.Module, Shape]:
    """Return a convolution around which the input goes as it is."""
    inner, _ = convolution(r, s, s.C)
    return Apply(lambda m, x: x + m.inner(x), inner=inner), s


FURTHER = (layers, layers, fused, windows, gathered, moved, branch)
