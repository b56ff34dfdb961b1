"""QKFormer: Hierarchical Spiking Transformer using Q-K Attention (NeurIPS 2024, arXiv 2403.16552)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from svitc.frontends.published.layers import MLP, Layers, SelfAttention, check_heads, halve, lif, over_time


class Embedding(NamedTuple):
    """A patch embedding with its deformed shortcut.

    Attributes:
        path: For each convolution its stage, its width as a share of the embedding's, and whether it halves the image.
        fork: Number of convolutions before the shortcut leaves.
        stride: Stride of the shortcut.
    """

    path: tuple[tuple[str, float, bool], ...]
    fork: int
    stride: int


class Variant(NamedTuple):
    """Differences between the published code for ImageNet, CIFAR and event data.

    Attributes:
        stem, later: Patch embeddings of the first stage and of the others.
        widths: Width of each stage as a share of the last one's. The last stage has self-attention, the others have
            token attention.
        attention, mlp: Name of self-attention in a block, and of the stages of the MLP.
    """

    stem: Embedding
    later: Embedding
    widths: tuple[float, ...]
    attention: str
    mlp: str


VARIANTS = {
    "imagenet": Variant(
        Embedding((("proj_{}", 0.5, True), ("proj1_{}", 1, True), ("proj2_{}", 1, False)), fork=1, stride=2),
        Embedding((("proj3_{}", 1, True), ("proj4_{}", 1, False)), fork=0, stride=2),
        (0.25, 0.5, 1),
        "attn",
        "fc",
    ),
    "cifar": Variant(
        Embedding((("proj_{}", 0.5, False), ("proj1_{}", 1, False)), fork=1, stride=1),
        Embedding((("proj3_{}", 1, False), ("proj4_{}", 1, True)), fork=0, stride=2),
        (0.25, 0.5, 1),
        "ssa",
        "mlp",
    ),
    "dvs": Variant(
        Embedding(
            (
                ("proj_{}", 0.125, False),
                ("proj1_{}", 0.25, True),
                ("proj2_{}", 0.5, True),
                ("proj3_{}", 1, True),
            ),
            fork=2,
            stride=4,
        ),
        Embedding((("proj_{}", 1, False), ("proj4_{}", 1, True)), fork=0, stride=2),
        (0.5, 1),
        "ssa",
        "mlp",
    ),
}


class PatchEmbedding(Layers):
    """Patch embedding, the sum of the spikes of two paths: ``[T, B, c, H, W] -> [T, B, C, H', W']``."""

    def __init__(self, n: int, dim: int, kind: Embedding) -> None:
        super().__init__()
        self.stages, self.fork = tuple(stage for stage, _, _ in kind.path), kind.fork
        widths = (n, *(int(dim * share) for _, share, _ in kind.path))
        for i, stage in enumerate(self.stages):
            self.add(stage, nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=False))
        self.pools = nn.ModuleList(halve() if halves else nn.Identity() for _, _, halves in kind.path)
        self.add("proj_res_{}", nn.Conv2d(widths[kind.fork], dim, 1, kind.stride, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        for i, (stage, pool) in enumerate(zip(self.stages, self.pools, strict=True), 1):
            x = self.fire(stage, self.current(stage, x, pool))
            shortcut = x if i == self.fork else shortcut
        return x + self.spikes("proj_res_{}", shortcut)


class TokenAttention(Layers):
    """Q-K token attention, ``[T, B, C, N]``: a token's keys pass in a head where enough of its queries fire."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.add("q_{}", nn.Conv1d(dim, dim, 1, bias=False))
        self.add("k_{}", nn.Conv1d(dim, dim, 1, bias=False))
        self.attn_lif = lif(0.5)
        self.add("proj_{}", nn.Conv1d(dim, dim, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = (self.spikes(stage, x).unflatten(2, (self.num_heads, -1)) for stage in ("q_{}", "k_{}"))
        y = self.attn_lif(q.sum(3, keepdim=True)) * k
        return self.spikes("proj_{}", y.flatten(2, 3))


class MixedSelfAttention(SelfAttention):
    """Self-attention as the published code runs it: its last neuron runs over time and batch as if both were time."""

    def project(self, x: torch.Tensor) -> torch.Tensor:
        current = self.current("proj_{}", x)
        return self.fire("proj_{}", current.flatten(0, 1)).unflatten(0, x.shape[:2])


class Block(nn.Module):
    """Attention (under its published name) and MLP, each added to its input: ``[T, B, C, H, W]``."""

    def __init__(self, name: str, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, attention)
        self.mlp = mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + getattr(self, self.name)(x.flatten(3)).unflatten(3, x.shape[3:])
        return x + self.mlp(x)


class QKFormer(nn.Module):
    """QKFormer: images ``[B, C, H, W]`` or event frames ``[T, B, C, H, W]`` to logits ``[B, classes]``.

    The published code gives the last neuron of self-attention ``[T * B, C, N]``, so that an image's output depends on
    its neighbors in the batch. Here the neuron gets ``[T, B, C, N]``, as in the paper, which equals the published code
    for a batch of one.

    Args:
        variant: A key of VARIANTS: the published code that the checkpoint comes from.
        depths: Number of blocks in each stage.
        official_bug: Compute what the published code computes, as the model of a bare checkpoint must. svitc
            captures it only with ``--rewrite-model``, which corrects it.

    Raises:
        ValueError: The variant does not exist, there is not one depth per stage, or the heads do not divide a width.
    """

    def __init__(
        self,
        variant: str = "imagenet",
        *,
        embed_dims: int = 384,
        num_heads: int = 6,
        depths: Sequence[int] = (1, 2, 7),
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        T: int = 4,
        official_bug: bool = False,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant {variant!r} is none of {', '.join(VARIANTS)}")
        kind = VARIANTS[variant]
        widths = [int(embed_dims * share) for share in kind.widths]
        if len(depths) != len(widths):
            raise ValueError(f"{variant} has {len(widths)} stages, got depths {depths}")
        check_heads(widths, num_heads)
        self.T, self.stages = T, len(widths)
        attention = MixedSelfAttention if official_bug else SelfAttention

        def block(dim: int, last: bool) -> Block:
            mlp = MLP(dim, int(dim * mlp_ratio), nn.Conv2d, kind.mlp)
            if last:
                return Block(kind.attention, attention(dim, num_heads, nn.Conv1d, scale=0.125), mlp)
            return Block("tssa", TokenAttention(dim, num_heads), mlp)

        for i, (dim, depth) in enumerate(zip(widths, depths, strict=True), 1):
            embedding = kind.later if i > 1 else kind.stem
            n = widths[i - 2] if i > 1 else in_channels
            self.add_module(f"patch_embed{i}", PatchEmbedding(n, dim, embedding))
            blocks = (block(dim, last=i == self.stages) for _ in range(depth))
            self.add_module(f"stage{i}", nn.ModuleList(blocks))
        self.head = nn.Linear(embed_dims, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = over_time(x, self.T)
        for i in range(1, self.stages + 1):
            x = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"stage{i}"):
                x = block(x)
        return self.head(x.flatten(3).mean(3).mean(0))
