"""STAtten: Lee et al., "Spiking Transformer with Spatial-Temporal Attention", CVPR 2025. Attention over blocks of
consecutive time steps, in a Spike-driven Transformer; ``forward`` passes a dictionary of hooks along."""

from __future__ import annotations

import torch
from torch import nn

from .definition import Definition
from .layers import ConvNorm, MembraneMLP, Stem, lif, split_heads


class SpatioTemporalAttention(nn.Module):
    def __init__(self, dim, heads, chunk):
        super().__init__()
        self.heads, self.chunk = heads, chunk
        self.shortcut_lif = lif()
        self.q, self.q_lif = ConvNorm(dim, dim), lif()
        self.k, self.k_lif = ConvNorm(dim, dim), lif()
        self.v, self.v_lif = ConvNorm(dim, dim), lif()
        self.attn_lif = lif(0.5)
        self.proj = ConvNorm(dim, dim, bias=True)

    def forward(self, x, hook=None):
        T, B, C, H, W = x.shape
        h, d, N = self.heads, C // self.heads, H * W
        identity = x
        x = self.shortcut_lif(x)
        if hook is not None:
            hook["first_lif"] = x.detach()
        q = split_heads(self.q_lif(self.q(x)), h)
        k = split_heads(self.k_lif(self.k(x)), h)
        v = split_heads(self.v_lif(self.v(x)), h)
        chunks = T // self.chunk
        q = q.view(chunks, self.chunk, B, h, N, d).permute(0, 2, 3, 1, 4, 5).reshape(chunks, B, h, self.chunk * N, d)
        k = k.view(chunks, self.chunk, B, h, N, d).permute(0, 2, 3, 1, 4, 5).reshape(chunks, B, h, self.chunk * N, d)
        v = v.view(chunks, self.chunk, B, h, N, d).permute(0, 2, 3, 1, 4, 5).reshape(chunks, B, h, self.chunk * N, d)
        attn = torch.matmul(k.transpose(-2, -1), v) * (1 / H)
        out = torch.matmul(q, attn)
        out = out.reshape(chunks, B, h, self.chunk, N, d).permute(0, 3, 1, 2, 4, 5).reshape(T, B, h, N, d)
        x = out.transpose(4, 3).reshape(T, B, C, N).contiguous()
        x = self.attn_lif(x).reshape(T, B, C, H, W)
        return self.proj(x) + identity, v, hook


class Block(nn.Module):
    def __init__(self, dim, heads, chunk):
        super().__init__()
        self.attn, self.mlp = SpatioTemporalAttention(dim, heads, chunk), MembraneMLP(dim, 4 * dim)

    def forward(self, x, hook=None):
        x, attn, hook = self.attn(x, hook=hook)
        return self.mlp(x), attn, hook


class STAtten(nn.Module):
    def __init__(self, T=4, dim=32, heads=4, depth=2, chunk=2, classes=10):
        super().__init__()
        self.T = T
        self.patch_embed = Stem(3, dim)
        self.block = nn.ModuleList(Block(dim, heads, chunk) for _ in range(depth))
        self.head_lif = lif()
        self.head = nn.Linear(dim, classes)

    def forward(self, x, hook=None):
        if len(x.shape) < 5:
            x = (x.unsqueeze(0)).repeat(self.T, 1, 1, 1, 1)
        else:
            x = x.transpose(0, 1).contiguous()
        x = self.patch_embed(x)
        for block in self.block:
            x, _, hook = block(x, hook=hook)
        x = self.head_lif(x.flatten(3).mean(3))
        return self.head(x).mean(0), hook


ZOO = {"statten": Definition(STAtten, (3, 16, 16), "Lee et al., CVPR 2025")}
