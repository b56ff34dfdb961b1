"""E-SpikeFormer, the base models of Spike-driven Transformer V3 (TPAMI 2025, arXiv 2411.16061).

Its neurons have no state and fire integers from 0 to 4: a value of n stands for spikes in n of 4 virtual time steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from svitc.frontends.published.four_stages import FourStages
from svitc.frontends.published.layers import check_heads
from svitc.ir.ops import IntegerSpike

LEVELS = 4
VALUE_WIDTH_RATIO = 4  # width of values over that of queries and keys


class Spike(nn.Module):
    """Neuron ``round(clamp(x, 0, 4)) / norm``, where halves round to even."""

    def __init__(self, norm: int = LEVELS) -> None:
        super().__init__()
        self.count, self.norm = IntegerSpike(LEVELS), norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.count(x) / self.norm


class DownSampling(nn.Module):
    """Neuron (except in the first layer of the model), convolution and batch norm."""

    def __init__(self, n: int, m: int, kernel_size: int, stride: int, first: bool = False) -> None:
        super().__init__()
        self.encode_conv = nn.Conv2d(n, m, kernel_size, stride, padding=kernel_size // 2)
        self.encode_bn = nn.BatchNorm2d(m)
        self.encode_spike = nn.Identity() if first else Spike()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encode_bn(self.encode_conv(self.encode_spike(x)))


def with_batch_norm(conv: nn.Module) -> nn.Sequential:
    """Return a convolution followed by a batch norm."""
    return nn.Sequential(conv, nn.BatchNorm2d(len(conv.weight)))  # type: ignore[arg-type]


class SeparableConv(nn.Module):
    """1x1, depthwise and 1x1 convolution at twice the width, with a neuron before each."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        hidden, padding = 2 * dim, kernel_size // 2
        self.spike1, self.spike2, self.spike3 = Spike(), Spike(), Spike()
        self.pwconv1 = with_batch_norm(nn.Conv2d(dim, hidden, 1, bias=False))
        self.dwconv = with_batch_norm(
            nn.Conv2d(hidden, hidden, kernel_size, padding=padding, groups=hidden, bias=False)
        )
        self.pwconv2 = with_batch_norm(nn.Conv2d(hidden, dim, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pwconv1(self.spike1(x))
        x = self.dwconv(self.spike2(x))
        return self.pwconv2(self.spike3(x))


class ConvBlock(nn.Module):
    """A separable convolution, then a pair of 3x3 convolutions, each added to its input."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.Conv = SeparableConv(dim, 7)
        self.spike1, self.spike2 = Spike(), Spike()
        self.conv1 = nn.Conv2d(dim, hidden, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, dim, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.Conv(x) + x
        y = self.bn1(self.conv1(self.spike1(x)))
        return x + self.bn2(self.conv2(self.spike2(y)))


class Attention(nn.Module):
    """Spiking self-attention with values four times as wide as queries: ``[B, C, H, W]``.

    Spikes are multiples of 1/4, so that ``(q k^T) v`` and ``q (k^T v)`` are equal in float32; this computes the latter.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.scale = (dim // heads) ** -0.5 * 2
        self.head_spike = Spike()
        self.q_conv = with_batch_norm(nn.Conv2d(dim, dim, 1, bias=False))
        self.k_conv = with_batch_norm(nn.Conv2d(dim, dim, 1, bias=False))
        self.v_conv = with_batch_norm(nn.Conv2d(dim, VALUE_WIDTH_RATIO * dim, 1, bias=False))
        self.proj_conv = with_batch_norm(nn.Conv2d(VALUE_WIDTH_RATIO * dim, dim, 1, bias=False))
        self.q_spike, self.k_spike, self.v_spike, self.attn_spike = Spike(), Spike(), Spike(), Spike()

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """Split ``[B, C, H, W]`` into heads, ``[B, h, N, d]``."""
        return x.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, x = x.shape[2:], self.head_spike(x)
        q = self.heads(self.q_spike(self.q_conv(x)))
        k = self.heads(self.k_spike(self.k_conv(x)))
        v = self.heads(self.v_spike(self.v_conv(x)))
        y = (q @ (k.transpose(2, 3) @ v)) * self.scale
        y = self.attn_spike(y.transpose(2, 3).flatten(1, 2))
        return self.proj_conv(y.unflatten(2, size))


class MLP(nn.Module):
    """Two projections with a neuron before each: ``[B, C, N]``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1_spike, self.fc2_spike = Spike(), Spike()
        self.fc1_conv, self.fc1_bn = nn.Conv1d(dim, hidden, 1), nn.BatchNorm1d(hidden)
        self.fc2_conv, self.fc2_bn = nn.Conv1d(hidden, dim, 1), nn.BatchNorm1d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1_bn(self.fc1_conv(self.fc1_spike(x)))
        return self.fc2_bn(self.fc2_conv(self.fc2_spike(x)))


class Block(nn.Module):
    """Separable convolution, attention and MLP, each added to its input: ``[B, C, H, W]``."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.conv = SeparableConv(dim, 3)
        self.attn = Attention(dim, heads)
        self.mlp = MLP(dim, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.conv(x)
        x = x + self.attn(x)
        return x + self.mlp(x.flatten(2)).unflatten(2, x.shape[2:])


class ESpikeFormer(FourStages):
    """E-SpikeFormer: images ``[B, C, H, W]`` to logits ``[B, classes]``, without a time axis.

    Args:
        embed_dims: Width of each of the four stages.
        num_heads: Number of heads in stages 3 and 4.
        depths: Number of blocks in stage 3 and in stage 4.

    Raises:
        ValueError: There are not four widths and two depths, or the heads do not divide a width.
    """

    def __init__(
        self,
        *,
        embed_dims: Sequence[int] = (64, 128, 256, 360),
        num_heads: int = 8,
        depths: Sequence[int] = (6, 2),
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        check_heads(embed_dims[2:], num_heads)
        super().__init__(
            embed_dims,
            depths,
            in_channels,
            DownSampling,
            lambda dim: ConvBlock(dim, int(dim * mlp_ratio)),
            lambda dim: Block(dim, num_heads, int(dim * mlp_ratio)),
        )
        self.spike = Spike(norm=1)
        self.head = nn.Linear(embed_dims[3], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.spike(self.features(x).flatten(2).mean(2)))
