"""Masked Spiking Transformer: Wang et al., "Masked Spiking Transformer", ICCV 2023. A Swin Transformer (Liu et al.,
ICCV 2021) with batch norms, whose activations are IF neurons after conversion: windows that join the batch, cyclic
shifts, a relative-position bias and a softmax. Spikes are masked in training alone, which is not done here."""

from __future__ import annotations

import torch
from torch import nn

from .definition import Definition
from .neurons import ScaledIF


def window_partition(x, size):
    """Return ``[B, H, W, C]`` as ``[windows * B, size, size, C]``."""
    B, H, W, C = x.shape
    x = x.view(B, H // size, size, W // size, size, C)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, C)


def window_reverse(windows, size, H, W):
    """Return the inverse of ``window_partition``."""
    B = int(windows.shape[0] / (H * W / size / size))
    x = windows.view(B, H // size, W // size, size, size, -1)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(B, H, W, -1)


class TokenNorm(nn.BatchNorm1d):
    """Batch norm of ``[B, N, C]``."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2).contiguous()).transpose(1, 2).contiguous()


class Steps(nn.Module):
    """A neuron on ``[T * B, ...]``."""

    def __init__(self, T):
        super().__init__()
        self.T, self.neuron = T, ScaledIF()

    def forward(self, x):
        return self.neuron(x.view(self.T, -1, *x.shape[1:])).flatten(0, 1)


class WindowAttention(nn.Module):
    def __init__(self, dim, size, heads, T):
        super().__init__()
        self.heads, self.scale, self.size = heads, (dim // heads) ** -0.5, size
        self.bias_table = nn.Parameter(torch.randn((2 * size - 1) ** 2, heads) * 0.2)
        axis = torch.arange(size)
        grid = torch.stack(torch.meshgrid([axis, axis], indexing="ij")).flatten(1)
        relative = (grid[:, :, None] - grid[:, None, :]).permute(1, 2, 0).contiguous()
        relative[:, :, 0] += size - 1
        relative[:, :, 1] += size - 1
        relative[:, :, 0] *= 2 * size - 1
        self.register_buffer("bias_index", relative.sum(-1))
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        self.q_if, self.k_if, self.v_if, self.attn_if, self.out_if, self.proj_if = (Steps(T) for _ in range(6))
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x, mask=None):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = self.q_if(qkv[0]), self.k_if(qkv[1]), self.v_if(qkv[2])
        attn = self.attn_if((q @ k.transpose(-2, -1)) * self.scale)
        bias = self.bias_table[self.bias_index.view(-1)].view(N, N, -1).permute(2, 0, 1).contiguous()
        attn = attn + bias.unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            attn = attn.view(B // windows, windows, self.heads, N, N) + mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, self.heads, N, N)
        x = (self.softmax(attn) @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj_if(self.proj(self.out_if(x)))


class Block(nn.Module):
    def __init__(self, dim, resolution, heads, size, shift, T):
        super().__init__()
        self.resolution, self.size, self.shift = resolution, size, shift
        self.norm1, self.if1 = TokenNorm(dim), Steps(T)
        self.attn = WindowAttention(dim, size, heads, T)
        self.norm2, self.if2 = TokenNorm(dim), Steps(T)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), TokenNorm(4 * dim), Steps(T), nn.Linear(4 * dim, dim), TokenNorm(dim), Steps(T)
        )
        mask = None
        if shift:
            H, W = resolution
            image = torch.zeros((1, H, W, 1))
            slices = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
            for number, (rows, columns) in enumerate((a, b) for a in slices for b in slices):
                image[:, rows, columns, :] = number
            windows = window_partition(image, size).view(-1, size * size)
            mask = windows.unsqueeze(1) - windows.unsqueeze(2)
            mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
        self.register_buffer("attn_mask", mask)

    def forward(self, x):
        H, W = self.resolution
        B, L, C = x.shape
        assert L == H * W, "the input has another size"
        shortcut = x
        x = self.if1(self.norm1(x)).view(B, H, W, C)
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        windows = window_partition(x, self.size).view(-1, self.size * self.size, C)
        windows = self.attn(windows, mask=self.attn_mask).view(-1, self.size, self.size, C)
        x = window_reverse(windows, self.size, H, W)
        if self.shift:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        x = shortcut + x.view(B, H * W, C)
        x = self.norm2(x)
        return x + self.mlp(self.if2(x))


class PatchMerging(nn.Module):
    def __init__(self, resolution, dim, T):
        super().__init__()
        self.resolution = resolution
        self.reduction, self.norm, self.spike = nn.Linear(4 * dim, 2 * dim, bias=False), TokenNorm(4 * dim), Steps(T)

    def forward(self, x):
        H, W = self.resolution
        B, _, C = x.shape
        x = x.view(B, H, W, C)
        parts = [x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[:, 1::2, 1::2, :]]
        x = torch.cat(parts, -1).view(B, -1, 4 * C)
        return self.reduction(self.spike(self.norm(x)))


class MaskedSpikingTransformer(nn.Module):
    def __init__(self, T=4, dim=16, heads=(2, 4), size=16, window=4, classes=10):
        super().__init__()
        self.T = T
        side = size // 2
        self.patch_embed, self.embed_norm = nn.Conv2d(3, dim, 2, 2), TokenNorm(dim)
        self.layer1 = nn.Sequential(
            Block(dim, (side, side), heads[0], window, 0, T), Block(dim, (side, side), heads[0], window, window // 2, T)
        )
        self.merge = PatchMerging((side, side), dim, T)
        self.layer2 = nn.Sequential(Block(2 * dim, (side // 2, side // 2), heads[1], window, 0, T))
        self.norm, self.norm_if = TokenNorm(2 * dim), Steps(T)
        self.avgpool, self.head = nn.AdaptiveAvgPool1d(1), nn.Linear(2 * dim, classes)

    def forward(self, x):
        x = x.repeat(self.T, 1, 1, 1)
        x = self.embed_norm(self.patch_embed(x).flatten(2).transpose(1, 2))
        x = self.layer2(self.merge(self.layer1(x)))
        x = self.norm_if(self.norm(x))
        x = torch.flatten(self.avgpool(x.transpose(1, 2)), 1)
        return self.head(x).view(self.T, -1, self.head.out_features).mean(0)


ZOO = {"masked-spiking-transformer": Definition(MaskedSpikingTransformer, (3, 16, 16), "Wang et al., ICCV 2023")}
