"""Spikformer: When Spiking Neural Network Meets Transformer (ICLR 2023, arXiv 2209.15425)."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from svitc.frontends.published.layers import MLP, Layers, SelfAttention, at_each_step, check_heads, halve, over_time

STEM = ("proj_{}", "proj_{}1", "proj_{}2", "proj_{}3")


class Variant(NamedTuple):
    """Differences between the published code for ImageNet, CIFAR and event data.

    Attributes:
        pooling: A published flag for each of the stem's four convolutions, ``1`` where it halves the image.
        attention, mlp: Type of their layers.
        scale: Scale of attention.
    """

    pooling: str
    attention: type[nn.Module]
    mlp: type[nn.Module]
    scale: float


VARIANTS = {
    "imagenet": Variant("1111", nn.Conv1d, nn.Conv2d, 0.125),
    "cifar": Variant("0011", nn.Linear, nn.Linear, 0.125),
    "dvs": Variant("1111", nn.Conv1d, nn.Conv1d, 0.25),
}


class PatchEmbedding(Layers):
    """Spiking patch splitting: ``[T, B, c, H, W] -> [T, B, C, H', W']``, spike counts from 0 to 2."""

    def __init__(self, in_channels: int, dim: int, pooling: str) -> None:
        super().__init__()
        widths = (in_channels, dim // 8, dim // 4, dim // 2, dim)
        for stage, (n, m) in zip(STEM, pairwise(widths), strict=True):
            self.add(stage, nn.Conv2d(n, m, 3, padding=1, bias=False))
        self.add("rpe_{}", nn.Conv2d(dim, dim, 3, padding=1, bias=False))
        self.pools = nn.ModuleList(halve() if flag == "1" else nn.Identity() for flag in pooling)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage, pool in zip(STEM, self.pools, strict=True):
            x = at_each_step(self.spikes(stage, x), (pool,))
        return self.spikes("rpe_{}", x) + x


class Block(nn.Module):
    """Attention and MLP, each added to its input. ``norm1`` and ``norm2`` are never used."""

    def __init__(self, dim: int, heads: int, hidden: int, variant: Variant) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, heads, variant.attention, variant.scale)
        self.mlp = MLP(dim, hidden, variant.mlp)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(x.flatten(3)).unflatten(3, x.shape[3:])  # attention takes tokens, x may have pixels
        return x + self.mlp(x)


class Spikformer(nn.Module):
    """Spikformer: images ``[B, C, H, W]`` or event frames ``[T, B, C, H, W]`` to logits ``[B, classes]``.

    Args:
        variant: A key of VARIANTS: the published code that the checkpoint comes from.
        tokens: Length of the position embedding that checkpoints for event data hold and nothing uses.

    Raises:
        ValueError: The variant does not exist, or the heads do not divide the width.
    """

    def __init__(
        self,
        variant: str = "imagenet",
        *,
        embed_dims: int = 512,
        num_heads: int = 8,
        depths: int = 8,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        T: int = 4,
        tokens: int = 64,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant {variant!r} is none of {', '.join(VARIANTS)}")
        check_heads([embed_dims], num_heads)
        kind = VARIANTS[variant]
        self.T, self.linear = T, kind.mlp is nn.Linear
        # the code for all data but ImageNet has tokens rather than pixels between the blocks
        self.tokens = kind.mlp is not nn.Conv2d
        self.patch_embed = PatchEmbedding(in_channels, embed_dims, kind.pooling)
        hidden = int(embed_dims * mlp_ratio)
        self.block = nn.ModuleList(Block(embed_dims, num_heads, hidden, kind) for _ in range(depths))
        if variant == "dvs":  # neither is used
            self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dims))
            self.norm = nn.LayerNorm(embed_dims)
        self.head = nn.Linear(embed_dims, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(over_time(x, self.T))
        if self.tokens:
            x = x.flatten(3)
        if self.linear:
            x = x.transpose(2, 3)
        for block in self.block:
            x = block(x)
        x = x.mean(2) if self.linear else x.flatten(3).mean(3)
        return self.head(x.mean(0))
