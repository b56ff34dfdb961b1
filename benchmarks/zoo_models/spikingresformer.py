"""SpikingResformer: Shi, Hao and Yu, "SpikingResformer: Bridging ResNet and Vision Transformer in Spiking Neural
Networks", CVPR 2024. Dual spike self-attention multiplies spikes by currents; its scales are buffers of firing rates.
Layers are subclasses of SpikingJelly's, as in the published code."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from .definition import Definition


class LIF(neuron.LIFNode):
    def __init__(self):
        super().__init__(tau=2.0, v_reset=0.0, surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m")


class BN(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x):
        if x.dim() != 5:
            raise ValueError(f"expected [T, N, C, H, W], not {x.shape}")
        return functional.seq_to_ann_forward(x, self.bn)


class Conv3x3(layer.Conv2d):
    def __init__(self, width_in, width_out, stride=1, groups=1):
        super().__init__(width_in, width_out, 3, stride, 1, groups=groups, bias=False, step_mode="m")


class Conv1x1(layer.Conv2d):
    def __init__(self, width_in, width_out):
        super().__init__(width_in, width_out, 1, bias=False, step_mode="m")


class Product(nn.Module):
    """A matrix product as a module, so that hooks can count its operations."""

    def forward(self, left, right):
        return torch.matmul(left, right)


class GroupWiseFFN(nn.Module):
    def __init__(self, width, ratio=4, group_size=32):
        super().__init__()
        hidden = width * ratio
        self.up = nn.Sequential(LIF(), Conv1x1(width, hidden), BN(hidden))
        self.conv = nn.ModuleList(
            [nn.Sequential(LIF(), Conv3x3(hidden, hidden, groups=hidden // group_size), BN(hidden))]
        )
        self.down = nn.Sequential(LIF(), Conv1x1(hidden, width), BN(width))

    def forward(self, x):
        outer = x.clone()
        x = self.up(x)
        inner = x.clone()
        for conv in self.conv:
            x = conv(x)
        return self.down(x + inner) + outer


class DualSpikeAttention(nn.Module):
    def __init__(self, dim, heads, length, patch):
        super().__init__()
        self.dim, self.heads, self.length = dim, heads, length
        self.register_buffer("rate_x", torch.zeros(1, 1, heads, 1, 1))
        self.register_buffer("rate_attn", torch.zeros(1, 1, heads, 1, 1))
        self.momentum = 0.9
        self.activation_in = LIF()
        self.W = layer.Conv2d(dim, dim * 2, patch, patch, bias=False, step_mode="m")
        self.norm = BN(dim * 2)
        self.product1, self.product2 = Product(), Product()
        self.activation_attn, self.activation_out = LIF(), LIF()
        self.proj, self.norm_proj = Conv1x1(dim, dim), BN(dim)

    def track(self, name, spikes):
        rate = spikes.detach().mean((0, 1, 3, 4), keepdim=True)
        buffer = getattr(self, name)
        first = bool(torch.all(buffer == 0))
        setattr(self, name, rate if first else buffer * self.momentum + rate * (1 - self.momentum))

    def forward(self, x):
        T, B, C, H, W = x.shape
        feature = x.clone()
        x = self.activation_in(x)
        y = self.norm(self.W(x))
        y = y.reshape(T, B, self.heads, 2 * C // self.heads, -1)
        y1, y2 = y[:, :, :, : C // self.heads, :], y[:, :, :, C // self.heads :, :]
        x = x.reshape(T, B, self.heads, C // self.heads, -1)
        if self.training:
            self.track("rate_x", x)
        attn = self.product1(y1.transpose(-1, -2), x) * (1.0 / torch.sqrt(self.rate_x * (self.dim // self.heads)))
        attn = self.activation_attn(attn)
        if self.training:
            self.track("rate_attn", attn)
        out = self.product2(y2, attn) * (1.0 / torch.sqrt(self.rate_attn * self.length))
        out = self.activation_out(out.reshape(T, B, C, H, W))
        return self.norm_proj(self.proj(out)) + feature


class Downsample(nn.Module):
    def __init__(self, width_in, width_out):
        super().__init__()
        self.conv, self.norm, self.activation = Conv3x3(width_in, width_out, stride=2), BN(width_out), LIF()

    def forward(self, x):
        return self.norm(self.conv(self.activation(x)))


class SpikingResformer(nn.Module):
    def __init__(self, planes=(16, 32), heads=(1, 2), patches=(2, 1), size=32, T=4, classes=10):
        super().__init__()
        self.T = T
        self.prologue = nn.Sequential(
            layer.Conv2d(3, planes[0], 7, 2, 3, bias=False, step_mode="m"),
            BN(planes[0]),
            layer.MaxPool2d(3, 2, 1, step_mode="m"),
        )
        size = size // 4
        self.layers = nn.Sequential()
        for i, width in enumerate(planes):
            stage = nn.Sequential()
            if i:
                stage.append(Downsample(planes[i - 1], width))
                size = size // 2
            stage.append(DualSpikeAttention(width, heads[i], (size // patches[i]) ** 2, patches[i]))
            stage.append(GroupWiseFFN(width))
            self.layers.append(stage)
        self.avgpool = layer.AdaptiveAvgPool2d((1, 1), step_mode="m")
        self.classifier = layer.Linear(planes[-1], classes, bias=False, step_mode="m")

    def forward(self, x):
        if x.dim() != 5:
            x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
            assert x.dim() == 5
        else:
            x = x.transpose(0, 1)
        x = self.layers(self.prologue(x))
        x = torch.flatten(self.avgpool(x), 2)
        return self.classifier(x)


ZOO = {"spikingresformer": Definition(SpikingResformer, (3, 32, 32), "Shi et al., CVPR 2024")}
