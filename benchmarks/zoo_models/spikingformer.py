"""Spikingformer and its CML variant.

Zhou et al., "Spikingformer: Spike-driven Residual Learning for Transformer-based Spiking Neural Network",
arXiv:2304.11954: neurons stand before convolutions, so that shortcuts carry no spikes.

Zhou et al., "Enhancing the Performance of Transformer-based Spiking Neural Networks by SNN-optimized Downsampling with
Precise Gradient Backpropagation", arXiv:2305.05954: pooling lies between batch norm and neuron (CML).
"""

from __future__ import annotations

import itertools

from torch import nn

from .definition import Definition
from .layers import MembraneMLP, lif


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, 0.125
        self.proj_lif = lif()
        self.q_conv, self.q_bn, self.q_lif = nn.Conv1d(dim, dim, 1, bias=False), nn.BatchNorm1d(dim), lif()
        self.k_conv, self.k_bn, self.k_lif = nn.Conv1d(dim, dim, 1, bias=False), nn.BatchNorm1d(dim), lif()
        self.v_conv, self.v_bn, self.v_lif = nn.Conv1d(dim, dim, 1, bias=False), nn.BatchNorm1d(dim), lif()
        self.attn_lif = lif(0.5)
        self.proj_conv, self.proj_bn = nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim)

    def branch(self, x, conv, bn, spike, T, B):
        _TB, C, N = x.shape
        x = spike(bn(conv(x)).reshape(T, B, C, N).contiguous())
        return x.transpose(-1, -2).reshape(T, B, N, self.heads, C // self.heads).permute(0, 1, 3, 2, 4).contiguous()

    def forward(self, x):
        T, B, C, H, W = x.shape
        x = self.proj_lif(x).flatten(3)
        N = H * W
        flat = x.flatten(0, 1)
        q = self.branch(flat, self.q_conv, self.q_bn, self.q_lif, T, B)
        k = self.branch(flat, self.k_conv, self.k_bn, self.k_lif, T, B)
        v = self.branch(flat, self.v_conv, self.v_bn, self.v_lif, T, B)
        attn = (q @ k.transpose(-2, -1)) * self.scale
        x = (attn @ v).transpose(3, 4).reshape(T, B, C, N).contiguous()
        x = self.attn_lif(x)
        return self.proj_bn(self.proj_conv(x.flatten(0, 1))).reshape(T, B, C, H, W)


class Block(nn.Module):
    def __init__(self, dim, heads, ratio=4):
        super().__init__()
        self.attn = Attention(dim, heads)
        self.mlp = MembraneMLP(dim, int(dim * ratio))

    def forward(self, x):
        x = x + self.attn(x)
        return self.mlp(x)


class Tokenizer(nn.Module):
    def __init__(self, channels, dim, cml):
        super().__init__()
        widths = [channels, dim // 4, dim // 2, dim]
        self.cml = cml
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 1, 1, bias=False) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.lifs = nn.ModuleList(lif() for _ in widths[2:])
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=False)

    def forward(self, x):
        T, B, _, H, W = x.shape
        x = self.norms[0](self.convs[0](x.flatten(0, 1)))
        for conv, norm, spike in zip(self.convs[1:], self.norms[1:], self.lifs, strict=True):
            if self.cml:  # batch norm, pooling, neuron
                x = self.pool(x)
                H, W = H // 2, W // 2
                x = spike(x.reshape(T, B, -1, H, W)).flatten(0, 1)
            else:  # batch norm, neuron, pooling
                x = spike(x.reshape(T, B, -1, H, W)).flatten(0, 1).contiguous()
                x = self.pool(x)
                H, W = H // 2, W // 2
            x = norm(conv(x))
        return x.reshape(T, B, -1, H, W).contiguous()


class Spikingformer(nn.Module):
    def __init__(self, T=4, dim=32, heads=4, depth=2, classes=10, cml=False):
        super().__init__()
        self.T = T
        self.patch_embed = Tokenizer(3, dim, cml)
        self.block = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.last_lif = lif()
        self.head = nn.Linear(dim, classes)

    def forward_features(self, x):
        x = self.patch_embed(x)
        for block in self.block:
            x = block(x)
        return self.last_lif(x).flatten(3).mean(3)

    def forward(self, x):
        x = (x.unsqueeze(0)).repeat(self.T, 1, 1, 1, 1)
        x = self.forward_features(x)
        return self.head(x.mean(0))


ZOO = {
    "spikingformer": Definition(Spikingformer, (3, 16, 16), "arXiv:2304.11954"),
    "spikingformer-cml": Definition(lambda: Spikingformer(cml=True), (3, 16, 16), "arXiv:2305.05954"),
}
