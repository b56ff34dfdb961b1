"""SpikeZIP-TF: You et al., "SpikeZIP-TF: Conversion is All You Need for Transformer-based SNN", ICML 2024. A quantized
ViT as a spiking network: neurons of both signs that track the sum of their spikes, and LayerNorm, softmax and products
that return the change of their output from step to step. Class token and position embedding are parameters."""

from __future__ import annotations

import torch
from torch import nn

from .definition import Definition
from .neurons import TrackedIF

LEVELS = 16


def tracked(threshold, signed=True):
    """Return a neuron of ``LEVELS`` levels, with a threshold as training leaves it.

    Thresholds are the step sizes that quantization-aware training learned. Round ones, which are multiples of each
    other, put one membrane in fifteen exactly on its threshold, where the order of the terms in a sum decides.
    """
    threshold = threshold * (0.9 + 0.2 * float(torch.rand(())))
    return TrackedIF(threshold, -LEVELS // 2 if signed else 0, LEVELS // 2 - 1 if signed else LEVELS - 1)


def sums(x):
    """Return the sums of ``[T, ...]`` up to each step."""
    return torch.cumsum(x, dim=0)


def changes(x):
    """Return the changes of ``[T, ...]`` from step to step; the first step is its own change."""
    return torch.cat([x[:1], x[1:] - x[:-1]], dim=0)


class SpikingLayerNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.layernorm = nn.LayerNorm(dim)

    def forward(self, x):
        return changes(self.layernorm(sums(x)))


class SpikingSoftmax(nn.Module):
    def forward(self, x):
        return changes(torch.softmax(sums(x), dim=-1))


def product(left, right):
    """Return the changes of the product of two sums, step by step, as the accumulators of the published code do."""
    outputs, left_sum, right_sum = [], 0, 0
    for a, b in zip(left.unbind(0), right.unbind(0), strict=True):
        left_sum, right_sum = left_sum + a, right_sum + b
        outputs.append(a @ right_sum + left_sum @ b - a @ b)
    return torch.stack(outputs)


class FirstStepLinear(nn.Linear):
    """Linear layer of ``[T, B, N, C]``, whose bias flows at the first step alone."""

    def forward(self, x):
        y = x @ self.weight.t()
        if self.bias is None:
            return y
        return torch.cat([y[:1] + self.bias, y[1:]])


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = FirstStepLinear(dim, dim * 3), FirstStepLinear(dim, dim)
        self.q_if, self.k_if, self.v_if = tracked(0.25), tracked(0.25), tracked(0.25)
        self.softmax, self.attn_if = SpikingSoftmax(), tracked(0.02, signed=False)
        self.after_if, self.proj_if = tracked(0.1), tracked(0.1)

    def forward(self, x):
        T, B, N, C = x.shape
        qkv = self.qkv(x).reshape(T, B, N, 3, self.heads, C // self.heads).permute(3, 0, 1, 4, 2, 5)
        q, k, v = qkv.unbind(0)
        q, k, v = self.q_if(q), self.k_if(k), self.v_if(v)
        attn = self.attn_if(self.softmax(product(q * self.scale, k.transpose(-2, -1))))
        x = self.after_if(product(attn, v)).transpose(2, 3).reshape(T, B, N, C)
        return self.proj_if(self.proj(x))


class MLP(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.act = FirstStepLinear(dim, hidden), tracked(0.1, signed=False)
        self.fc2, self.out = FirstStepLinear(hidden, dim), tracked(0.1)

    def forward(self, x):
        return self.out(self.fc2(self.act(self.fc1(x))))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.if1, self.attn = SpikingLayerNorm(dim), tracked(0.25), Attention(dim, heads)
        self.norm2, self.if2, self.mlp = SpikingLayerNorm(dim), tracked(0.25), MLP(dim, 4 * dim)

    def forward(self, x):
        x = x + self.attn(self.if1(self.norm1(x)))
        return x + self.mlp(self.if2(self.norm2(x)))


class SpikeZIP(nn.Module):
    def __init__(self, T=4, dim=32, heads=4, depth=2, size=16, patch=4, classes=10):
        super().__init__()
        self.T = T
        self.patch_embed, self.embed_if = nn.Conv2d(3, dim, patch, patch), tracked(0.25)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.5)
        self.pos_embed = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, dim) * 0.5)
        self.blocks = nn.Sequential(*[Block(dim, heads) for _ in range(depth)])
        self.norm, self.head = SpikingLayerNorm(dim), FirstStepLinear(dim, classes)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        x = torch.stack([x] + [torch.zeros_like(x)] * (self.T - 1))  # all of the current at the first step
        x = self.norm(self.blocks(self.embed_if(x)))
        return self.head(x[:, :, 0]).sum(0)


ZOO = {"spikezip-tf": Definition(SpikeZIP, (3, 16, 16), "You et al., ICML 2024")}
