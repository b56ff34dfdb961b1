"""MSViT: Hua et al., "MSViT: Training Multiscale Vision Transformers for Spiking Neural Networks", IJCAI 2025.
Attention over branches of two receptive fields, in four stages whose patch embeddings add a strided shortcut; then
Spikformer's attention."""

from __future__ import annotations

import torch
from torch import nn

from .definition import Definition
from .layers import ConvNorm, SpikeMLP, lif


class MultiScaleAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q_conv, self.q_bn, self.q_lif = nn.Conv1d(dim, dim, 1, bias=False), nn.BatchNorm1d(dim), lif()
        self.k_conv, self.k_bn, self.k_lif = nn.Conv1d(dim, dim, 1, bias=False), nn.BatchNorm1d(dim), lif()
        self.p_conv, self.p_bn, self.p_lif = nn.Conv1d(dim, dim, 3, 1, 1, bias=False), nn.BatchNorm1d(dim), lif()
        self.attn_lif = lif(0.5)
        self.proj_conv, self.proj_bn, self.proj_lif = nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim), lif()

    def forward(self, x):
        T, B, C, H, W = x.shape
        x = x.flatten(3)
        N = x.shape[-1]
        flat = x.flatten(0, 1)
        q = self.q_lif(self.q_bn(self.q_conv(flat)).reshape(T, B, C, N))
        k = self.k_lif(self.k_bn(self.k_conv(flat)).reshape(T, B, C, N))
        p = self.p_lif(self.p_bn(self.p_conv(flat)).reshape(T, B, C, N))
        q = q.unsqueeze(2).reshape(T, B, self.heads, C // self.heads, N)
        k = k.unsqueeze(2).reshape(T, B, self.heads, C // self.heads, N)
        p = p.unsqueeze(2).reshape(T, B, self.heads, C // self.heads, N)
        attn = self.attn_lif(torch.sum(q, dim=3, keepdim=True) + torch.sum(p, dim=3, keepdim=True))
        x = torch.mul(attn, k).flatten(2, 3)
        x = self.proj_bn(self.proj_conv(x.flatten(0, 1))).reshape(T, B, C, H, W)
        return self.proj_lif(x)


class SelfAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, 0.125
        self.q_conv, self.q_bn, self.q_lif = nn.Conv1d(dim, dim, 1, bias=False), nn.BatchNorm1d(dim), lif()
        self.k_conv, self.k_bn, self.k_lif = nn.Conv1d(dim, dim, 1, bias=False), nn.BatchNorm1d(dim), lif()
        self.v_conv, self.v_bn, self.v_lif = nn.Conv1d(dim, dim, 1, bias=False), nn.BatchNorm1d(dim), lif()
        self.attn_lif = lif(0.5)
        self.proj_conv, self.proj_bn, self.proj_lif = nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim), lif()

    def heads_of(self, x):
        T, B, C, N = x.shape
        return x.transpose(-1, -2).reshape(T, B, N, self.heads, C // self.heads).permute(0, 1, 3, 2, 4).contiguous()

    def forward(self, x):
        T, B, C, H, W = x.shape
        flat = x.flatten(3).flatten(0, 1)
        q = self.heads_of(self.q_lif(self.q_bn(self.q_conv(flat)).reshape(T, B, C, H * W)))
        k = self.heads_of(self.k_lif(self.k_bn(self.k_conv(flat)).reshape(T, B, C, H * W)))
        v = self.heads_of(self.v_lif(self.v_bn(self.v_conv(flat)).reshape(T, B, C, H * W)))
        x = (q @ (k.transpose(-2, -1) @ v)) * self.scale
        x = self.attn_lif(x.transpose(3, 4).reshape(T, B, C, H * W).contiguous())
        x = self.proj_bn(self.proj_conv(x.flatten(0, 1))).reshape(T, B, C, H, W)
        return self.proj_lif(x)


class Block(nn.Module):
    def __init__(self, attention, dim, heads):
        super().__init__()
        self.attn, self.mlp = attention(dim, heads), SpikeMLP(dim, 4 * dim)

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(x)


class PatchEmbed(nn.Module):
    """Two convolutions, the second pooled, beside a strided 1x1 convolution; spikes of both are added."""

    def __init__(self, width_in, width_out):
        super().__init__()
        self.conv1, self.lif1 = ConvNorm(width_in, width_out, 3), lif()
        self.conv2, self.pool, self.lif2 = ConvNorm(width_out, width_out, 3), nn.MaxPool2d(3, 2, 1), lif()
        self.shortcut, self.shortcut_lif = ConvNorm(width_in, width_out, 1, stride=2), lif()

    def forward(self, x):
        T, B, _, H, W = x.shape
        feature = self.shortcut_lif(self.shortcut(x))
        x = self.conv2(self.lif1(self.conv1(x)))
        x = self.pool(x.flatten(0, 1)).reshape(T, B, -1, H // 2, W // 2).contiguous()
        return self.lif2(x) + feature


class MSViT(nn.Module):
    def __init__(self, T=4, dim=32, heads=4, classes=10):
        super().__init__()
        self.T = T
        self.patch_embed1, self.stage1 = PatchEmbed(3, dim // 2), Block(MultiScaleAttention, dim // 2, heads)
        self.patch_embed2, self.stage2 = PatchEmbed(dim // 2, dim), Block(MultiScaleAttention, dim, heads)
        self.stage3 = Block(SelfAttention, dim, heads)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = (x.unsqueeze(0)).repeat(self.T, 1, 1, 1, 1)
        x = self.stage1(self.patch_embed1(x))
        x = self.stage3(self.stage2(self.patch_embed2(x)))
        return self.head(x.flatten(3).mean(3).mean(0))


ZOO = {"msvit": Definition(MSViT, (3, 16, 16), "Hua et al., IJCAI 2025")}
