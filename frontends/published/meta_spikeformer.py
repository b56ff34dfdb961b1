"""Meta-SpikeFormer, also called Spike-driven Transformer V2 (ICLR 2024, arXiv 2404.03663)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from svitc.frontends.published.four_stages import FourStages
from svitc.frontends.published.layers import Layers, RepConv, at_each_step, check_heads, lif, over_time


class DownSampling(Layers):
    """Neuron (except in the first layer of the model), convolution and batch norm: ``[T, B, C, H, W]``."""

    def __init__(self, n: int, m: int, kernel_size: int, stride: int, first: bool = False) -> None:
        super().__init__()
        self.first = first
        conv = nn.Conv2d(n, m, kernel_size, stride, padding=kernel_size // 2)
        self.add("encode_{}", conv, spike=None if first else lif)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.current("encode_{}", x if self.first else self.fire("encode_{}", x))


class SeparableConv(nn.Module):
    """1x1 convolution, neuron, depthwise 7x7 and 1x1 convolution, at twice the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = 2 * dim
        self.lif1 = lif()
        self.pwconv1 = nn.Conv2d(dim, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.lif2 = lif()
        self.dwconv = nn.Conv2d(hidden, hidden, 7, padding=3, groups=hidden, bias=False)
        self.pwconv2 = nn.Conv2d(hidden, dim, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = at_each_step(self.lif1(x), (self.pwconv1, self.bn1))
        return at_each_step(self.lif2(x), (self.dwconv, self.pwconv2, self.bn2))


class ConvBlock(nn.Module):
    """A separable convolution, then a pair of 3x3 convolutions, each added to its input."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.Conv = SeparableConv(dim)
        self.lif1 = lif()
        self.conv1 = nn.Conv2d(dim, hidden, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.lif2 = lif()
        self.conv2 = nn.Conv2d(hidden, dim, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.Conv(x) + x
        y = at_each_step(self.lif1(x), (self.conv1, self.bn1))
        return x + at_each_step(self.lif2(y), (self.conv2, self.bn2))


class Attention(nn.Module):
    """Spiking self-attention with a RepConv for each projection: ``[T, B, C, H, W]``."""

    scale = 0.125

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_lif = lif()
        self.q_conv, self.k_conv, self.v_conv, self.proj_conv = (
            nn.Sequential(RepConv(dim, dim), nn.BatchNorm2d(dim)) for _ in range(4)
        )
        self.q_lif, self.k_lif, self.v_lif = lif(), lif(), lif()
        self.attn_lif = lif(0.5)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """Split ``[T, B, C, H, W]`` into heads, ``[T, B, h, N, d]``."""
        return x.flatten(3).unflatten(2, (self.num_heads, -1)).transpose(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, x = x.shape[3:], self.head_lif(x)
        q = self.heads(self.q_lif(at_each_step(x, self.q_conv)))
        k = self.heads(self.k_lif(at_each_step(x, self.k_conv)))
        v = self.heads(self.v_lif(at_each_step(x, self.v_conv)))
        y = (q @ (k.transpose(3, 4) @ v)) * self.scale
        y = self.attn_lif(y.transpose(3, 4).flatten(2, 3))
        return at_each_step(y.unflatten(3, size), self.proj_conv)


class MLP(Layers):
    """Two projections with a neuron before each: ``[T, B, C, N]``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.add("fc1_{}", nn.Conv1d(dim, hidden, 1))
        self.add("fc2_{}", nn.Conv1d(hidden, dim, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in ("fc1_{}", "fc2_{}"):
            x = self.current(stage, self.fire(stage, x))
        return x


class Block(nn.Module):
    """Attention and MLP, each added to its input: ``[T, B, C, H, W]``."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn = Attention(dim, heads)
        self.mlp = MLP(dim, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x.flatten(3)).unflatten(3, x.shape[3:])


class MetaSpikeFormer(FourStages):
    """Meta-SpikeFormer: images ``[B, C, H, W]`` to logits ``[B, classes]``.

    Args:
        embed_dims: Width of each of the four stages.
        num_heads: Number of heads in stages 3 and 4.
        depths: Number of blocks in stage 3 and in stage 4.
        distilled: Add a second head, ``head_kd``; the logits are the mean of both, in training, too.

    Raises:
        ValueError: There are not four widths and two depths, or the heads do not divide a width.
    """

    def __init__(
        self,
        *,
        embed_dims: Sequence[int] = (128, 256, 512, 640),
        num_heads: int = 8,
        depths: Sequence[int] = (6, 2),
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        T: int = 1,
        distilled: bool = False,
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
        self.T, self.distilled = T, distilled
        self.lif = lif()
        self.head = nn.Linear(embed_dims[3], num_classes)
        if distilled:
            self.head_kd = nn.Linear(embed_dims[3], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(over_time(x, self.T))
        x = self.lif(x.flatten(3).mean(3))
        y = self.head(x).mean(0)
        return (y + self.head_kd(x).mean(0)) / 2 if self.distilled else y
