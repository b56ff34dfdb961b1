"""E-SpikeFormer, large: Yao et al., "Scaling Spike-driven Transformer with Efficient Spike Firing Approximation
Training", IEEE TPAMI 2025 (SDT v3). The large model's efficient attention: values four times as wide, integer spikes
from an autograd function, a learned scale per channel behind attention, and 5 x 5 separable convolutions."""

from __future__ import annotations

import torch
from torch import nn

from .definition import Definition
from .neurons import MultiSpike


class SeparableConv(nn.Module):
    def __init__(self, dim, ratio=2, kernel=5):
        super().__init__()
        hidden = dim * ratio
        self.spike1, self.pw1 = (
            MultiSpike(),
            nn.Sequential(nn.Conv2d(dim, hidden, 1, bias=False), nn.BatchNorm2d(hidden)),
        )
        self.spike2 = MultiSpike()
        self.dw = nn.Sequential(
            nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden, bias=False), nn.BatchNorm2d(hidden)
        )
        self.spike3, self.pw2 = MultiSpike(), nn.Sequential(nn.Conv2d(hidden, dim, 1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x):
        x = self.dw(self.spike2(self.pw1(self.spike1(x))))
        return self.pw2(self.spike3(x))


class ConvBlock(nn.Module):
    def __init__(self, dim, ratio=4):
        super().__init__()
        self.conv = SeparableConv(dim)
        self.spike1, self.conv1 = MultiSpike(), nn.Conv2d(dim, dim * ratio, 3, padding=1, bias=False)
        self.bn1, self.spike2 = nn.BatchNorm2d(dim * ratio), MultiSpike()
        self.conv2, self.bn2 = nn.Conv2d(dim * ratio, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)

    def forward(self, x):
        x = self.conv(x) + x
        return x + self.bn2(self.conv2(self.spike2(self.bn1(self.conv1(self.spike1(x))))))


class LinearAttention(nn.Module):
    def __init__(self, dim, heads, ratio=4):
        super().__init__()
        self.heads, self.ratio, self.scale = heads, ratio, (dim // heads) ** -0.5
        self.head_spike = MultiSpike()
        self.q_conv = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
        self.k_conv = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
        self.v_conv = nn.Sequential(nn.Conv2d(dim, dim * ratio, 1, bias=False), nn.BatchNorm2d(dim * ratio))
        self.q_spike, self.k_spike, self.v_spike, self.attn_spike = (MultiSpike() for _ in range(4))
        self.proj_conv = nn.Sequential(nn.Conv2d(dim * ratio, dim, 1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x):
        B, C, H, W = x.shape
        N, wide = H * W, C * self.ratio
        x = self.head_spike(x)
        q, k, v = self.q_conv(x), self.k_conv(x), self.v_conv(x)
        q = self.q_spike(q).flatten(2).transpose(-1, -2).reshape(B, N, self.heads, C // self.heads)
        k = self.k_spike(k).flatten(2).transpose(-1, -2).reshape(B, N, self.heads, C // self.heads)
        v = self.v_spike(v).flatten(2).transpose(-1, -2).reshape(B, N, self.heads, wide // self.heads)
        q, k, v = (y.permute(0, 2, 1, 3).contiguous() for y in (q, k, v))
        x = (q @ (k.transpose(-2, -1) @ v)) * self.scale * 2
        x = x.transpose(2, 3).reshape(B, wide, N).contiguous()
        return self.proj_conv(self.attn_spike(x).reshape(B, wide, H, W))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.conv, self.attn = SeparableConv(dim), LinearAttention(dim, heads)
        self.fc1_spike, self.fc1, self.bn1 = MultiSpike(), nn.Conv1d(dim, 4 * dim, 1), nn.BatchNorm1d(4 * dim)
        self.fc2_spike, self.fc2, self.bn2 = MultiSpike(), nn.Conv1d(4 * dim, dim, 1), nn.BatchNorm1d(dim)
        self.layer_scale1 = nn.Parameter(0.5 * torch.ones(dim, 1, 1))
        self.layer_scale2 = nn.Parameter(0.5 * torch.ones(dim, 1, 1))

    def mlp(self, x):
        B, C, H, W = x.shape
        x = self.bn1(self.fc1(self.fc1_spike(x.flatten(2))))
        return self.bn2(self.fc2(self.fc2_spike(x))).reshape(B, C, H, W).contiguous()

    def forward(self, x):
        x = x + self.conv(x)
        x = x + self.attn(x) * self.layer_scale1
        return x + self.mlp(x) * self.layer_scale2


class Down(nn.Module):
    def __init__(self, width_in, width_out, kernel, stride, first=False):
        super().__init__()
        self.spike = None if first else MultiSpike()
        self.conv, self.bn = nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2), nn.BatchNorm2d(width_out)

    def forward(self, x):
        if self.spike is not None:
            x = self.spike(x)
        return self.bn(self.conv(x))


class ESpikeFormerLarge(nn.Module):
    def __init__(self, dims=(8, 16, 32, 48), heads=4, classes=10):
        super().__init__()
        self.down1, self.block1 = Down(3, dims[0], 7, 2, first=True), ConvBlock(dims[0])
        self.down2, self.block2 = Down(dims[0], dims[1], 3, 2), ConvBlock(dims[1])
        self.down3 = Down(dims[1], dims[2], 3, 2)
        self.block3 = nn.ModuleList(Block(dims[2], heads) for _ in range(2))
        self.down4 = Down(dims[2], dims[3], 3, 1)
        self.block4 = nn.ModuleList(Block(dims[3], heads) for _ in range(1))
        self.spike, self.head = MultiSpike(), nn.Linear(dims[3], classes)

    def forward(self, x):
        x = self.block2(self.down2(self.block1(self.down1(x))))
        x = self.down3(x)
        for block in self.block3:
            x = block(x)
        x = self.down4(x)
        for block in self.block4:
            x = block(x)
        return self.head(self.spike(x.flatten(2).mean(2)))


ZOO = {"e-spikeformer-large": Definition(ESpikeFormerLarge, (3, 32, 32), "Yao et al., IEEE TPAMI 2025")}
