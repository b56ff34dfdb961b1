"""Spikformer in the style of BrainCog: Zeng et al., "BrainCog: A spiking neural network based, brain-inspired cognitive
intelligence engine for brain-inspired AI and brain simulation", Patterns 2023; the architecture is Zhou et al.,
"Spikformer: When Spiking Neural Network Meets Transformer", ICLR 2023. Nodes are written by hand, hold time beside the
batch, keep their state as attributes, and are reset by the model at the start of ``forward``."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import nn

from .definition import Definition
from .neurons import NodeLIF


class Attention(nn.Module):
    def __init__(self, dim, step, heads):
        super().__init__()
        self.heads, self.scale, self.step = heads, 0.125, step
        self.q_linear, self.q_bn, self.q_lif = nn.Linear(dim, dim), nn.BatchNorm1d(dim), NodeLIF(step)
        self.k_linear, self.k_bn, self.k_lif = nn.Linear(dim, dim), nn.BatchNorm1d(dim), NodeLIF(step)
        self.v_linear, self.v_bn, self.v_lif = nn.Linear(dim, dim), nn.BatchNorm1d(dim), NodeLIF(step)
        self.attn_lif = NodeLIF(step)
        self.proj_linear, self.proj_bn, self.proj_lif = nn.Linear(dim, dim), nn.BatchNorm1d(dim), NodeLIF(step)

    def forward(self, x):
        q = self.q_lif(self.q_bn(self.q_linear(x).transpose(-1, -2)).transpose(-1, -2))
        k = self.k_lif(self.k_bn(self.k_linear(x).transpose(-1, -2)).transpose(-1, -2))
        v = self.v_lif(self.v_bn(self.v_linear(x).transpose(-1, -2)).transpose(-1, -2))
        q, k, v = (rearrange(y, "tb n (h d) -> tb h n d", h=self.heads) for y in (q, k, v))
        attn = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        x = rearrange(torch.einsum("bhij,bhjd->bhid", attn, v), "tb h n d -> tb n (h d)")
        x = self.attn_lif(x)
        return self.proj_lif(self.proj_bn(self.proj_linear(x).transpose(-1, -2)).transpose(-1, -2))


class MLP(nn.Module):
    def __init__(self, dim, step, hidden):
        super().__init__()
        self.fc1, self.bn1, self.lif1 = nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), NodeLIF(step)
        self.fc2, self.bn2, self.lif2 = nn.Linear(hidden, dim), nn.BatchNorm1d(dim), NodeLIF(step)

    def forward(self, x):
        x = self.lif1(self.bn1(self.fc1(x).transpose(-1, -2)).transpose(-1, -2))
        return self.lif2(self.bn2(self.fc2(x).transpose(-1, -2)).transpose(-1, -2))


class BrainCogSpikformer(nn.Module):
    def __init__(self, step=4, dim=32, heads=4, depth=2, classes=10):
        super().__init__()
        self.step = step
        self.conv1, self.bn1, self.lif1 = nn.Conv2d(3, dim // 2, 3, 2, 1), nn.BatchNorm2d(dim // 2), NodeLIF(step)
        self.conv2, self.bn2, self.lif2 = nn.Conv2d(dim // 2, dim, 3, 2, 1), nn.BatchNorm2d(dim), NodeLIF(step)
        self.attn = nn.ModuleList([Attention(dim, step, heads) for _ in range(depth)])
        self.mlp = nn.ModuleList([MLP(dim, step, 4 * dim) for _ in range(depth)])
        self.head = nn.Linear(dim, classes)

    def reset(self):
        for module in self.modules():
            if hasattr(module, "node_reset"):
                module.node_reset()

    def forward(self, inputs):
        self.reset()
        x = repeat(inputs, "b c h w -> (t b) c h w", t=self.step)
        x = self.lif2(self.bn2(self.conv2(self.lif1(self.bn1(self.conv1(x))))))
        x = rearrange(x, "tb c h w -> tb (h w) c")
        for attn, mlp in zip(self.attn, self.mlp, strict=True):
            x = x + attn(x)
            x = x + mlp(x)
        x = rearrange(x.mean(1), "(t b) c -> t b c", t=self.step)
        return sum(self.head(x[step]) for step in range(self.step)) / self.step


ZOO = {"braincog-spikformer": Definition(BrainCogSpikformer, (3, 16, 16), "Zeng et al., Patterns 2023")}
