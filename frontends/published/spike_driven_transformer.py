"""Spike-driven Transformer (NeurIPS 2023, arXiv 2307.01694)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from svitc.frontends.published.layers import Layers, Spike, at_each_step, check_heads, halve, lif, over_time, plif
from svitc.frontends.published.spikformer import STEM

NEURONS: dict[str, Spike] = {"lif": lif, "plif": plif}


class PatchEmbedding(Layers):
    """Patch embedding, which gives currents: ``[T, B, c, H, W] -> [T, B, C, H', W']``. ``rpe_lif`` is never used."""

    def __init__(self, in_channels: int, dim: int, pooling: str, spike: Spike) -> None:
        super().__init__()
        widths = (in_channels, dim // 8, dim // 4, dim // 2, dim)
        for stage, (n, m) in zip(STEM, pairwise(widths), strict=True):
            self.add(stage, nn.Conv2d(n, m, 3, padding=1, bias=False), spike)
        self.add("rpe_{}", nn.Conv2d(dim, dim, 3, padding=1, bias=False), spike)
        self.pools = nn.ModuleList(halve() if flag == "1" else nn.Identity() for flag in pooling)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *first, last = STEM
        for stage, pool in zip(first, self.pools, strict=False):
            x = at_each_step(self.spikes(stage, x), (pool,))
        x = self.current(last, x, self.pools[-1])
        return self.current("rpe_{}", self.fire(last, x)) + x


class Attention(Layers):
    """Spike-driven self-attention, ``[T, B, C, H, W]``.

    A channel's queries pass where its keys and values coincide in enough tokens. Heads matter only where ``pooled``:
    then a window slides over the tokens and channels of each head, so that channels are no longer independent.
    ``talking_heads`` and ``attn_lif`` are never used.
    """

    def __init__(self, dim: int, heads: int, spike: Spike, pooled: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.shortcut_lif = spike(1.0)
        for stage in ("q_{}", "k_{}", "v_{}"):
            self.add(stage, nn.Conv2d(dim, dim, 1, bias=False), spike)
        self.attn_lif = spike(0.5)
        self.talking_heads = nn.Conv1d(heads, heads, 1, bias=False)
        self.talking_heads_lif = spike(0.5)
        self.add("proj_{}", nn.Conv2d(dim, dim, 1), spike=None)
        self.pools = nn.ModuleList(nn.MaxPool2d(3, stride=1, padding=1) for _ in range(4 * pooled))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spikes = self.shortcut_lif(x)
        q, k, v = (self.spikes(stage, spikes) for stage in ("q_{}", "k_{}", "v_{}"))
        if self.pools:
            y = self.pooled(q, k, v)
        else:
            coincidences = (k * v).flatten(3).sum(3, keepdim=True)
            y = q.flatten(3) * self.talking_heads_lif(coincidences)
        return x + self.current("proj_{}", y.unflatten(3, x.shape[3:]))

    def pooled(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Return attention with pooling, ``[T, B, C, N]``; it works on heads, ``[T, B, h, N, d]``."""
        pool_k, pool_v, pool_kv, pool_y = ((pool,) for pool in self.pools)
        k, v = at_each_step(k, pool_k), at_each_step(v, pool_v)
        q, k, v = (s.flatten(3).unflatten(2, (self.num_heads, -1)).transpose(3, 4) for s in (q, k, v))
        coincidences = at_each_step(k * v, pool_kv).sum(3, keepdim=True)
        y = at_each_step(q * self.talking_heads_lif(coincidences), pool_y)
        return y.transpose(3, 4).flatten(2, 3)


class MLP(Layers):
    """Two projections with a shortcut, ``[T, B, C, H, W]``, and a second one where the hidden width is the input's."""

    def __init__(self, dim: int, hidden: int, spike: Spike) -> None:
        super().__init__()
        self.inner_shortcut = dim == hidden
        self.add("fc1_{}", nn.Conv2d(dim, hidden, 1), spike)
        self.add("fc2_{}", nn.Conv2d(hidden, dim, 1), spike)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.current("fc1_{}", self.fire("fc1_{}", x))
        if self.inner_shortcut:
            x = hidden = x + hidden
        return self.current("fc2_{}", self.fire("fc2_{}", hidden)) + x


class Block(nn.Module):
    """Attention and MLP, which add their own shortcuts: ``[T, B, C, H, W]``."""

    def __init__(self, dim: int, heads: int, hidden: int, spike: Spike, pooled: bool) -> None:
        super().__init__()
        self.attn = Attention(dim, heads, spike, pooled)
        self.mlp = MLP(dim, hidden, spike)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.attn(x))


class SpikeDrivenTransformer(nn.Module):
    """Spike-driven Transformer: images ``[B, C, H, W]`` or event frames ``[T, B, C, H, W]`` to logits ``[B, classes]``.

    Logits are averaged over time.

    Args:
        pooling_stat: A flag for each of the stem's four convolutions, ``1`` where it halves the image.
        spike_mode: ``lif`` or ``plif``.
        dvs_mode: Pool inside attention, as for CIFAR10-DVS (but not for DVS128 Gesture).

    Raises:
        ValueError: The neuron or the flags do not exist, or the heads do not divide the width.
    """

    def __init__(
        self,
        *,
        embed_dims: int = 512,
        num_heads: int = 8,
        depths: int = 8,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        T: int = 4,
        pooling_stat: str = "1111",
        spike_mode: str = "lif",
        dvs_mode: bool = False,
    ) -> None:
        super().__init__()
        if spike_mode not in NEURONS:
            raise ValueError(f"spike_mode {spike_mode!r} is none of {', '.join(NEURONS)}")
        if len(pooling_stat) != len(STEM) or not set(pooling_stat) <= set("01"):
            raise ValueError(f"pooling_stat {pooling_stat!r} is not four flags such as '0011'")
        check_heads([embed_dims], num_heads)
        self.T = T
        spike, hidden = NEURONS[spike_mode], int(embed_dims * mlp_ratio)
        self.patch_embed = PatchEmbedding(in_channels, embed_dims, pooling_stat, spike)
        self.block = nn.ModuleList(Block(embed_dims, num_heads, hidden, spike, dvs_mode) for _ in range(depths))
        self.head_lif = spike(1.0)
        self.head = nn.Linear(embed_dims, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(over_time(x, self.T))
        for block in self.block:
            x = block(x)
        return self.head(self.head_lif(x.flatten(3).mean(3))).mean(0)
