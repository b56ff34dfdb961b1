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
        path: of each convolution: stage, what its width is of the embedding's, whether it halves the image.
        fork: the shortcut leaves after so many of them.
        stride: of the shortcut.
    """

    path: tuple[tuple[str, float, bool], ...]
    fork: int
    stride: int


class Variant(NamedTuple):
    """What differs between the published code for one kind of data and another.

    Attributes:
        stem, later: patch embeddings of the first stage and of the others.
        widths: of the stages, of the last one's. It has self-attention, those before it token attention.
        attention, mlp: what they are called in a block of self-attention and in all blocks' MLP.
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
    """``[T, B, c, H, W] -> [T, B, C, H', W']``, the sum of two paths' spikes."""

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
    """Q-K token attention, ``[T, B, C, N]``: a head's keys pass where enough of its queries fire."""

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
    """Self-attention as the published code runs it: its last neuron takes time and batch for time."""

    def project(self, x: torch.Tensor) -> torch.Tensor:
        current = self.current("proj_{}", x)
        return self.fire("proj_{}", current.flatten(0, 1)).unflatten(0, x.shape[:2])


class Block(nn.Module):
    """Attention, under its published name, and MLP, each added to its input: ``[T, B, C, H, W]``."""

    def __init__(self, name: str, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, attention)
        self.mlp = mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + getattr(self, self.name)(x.flatten(3)).unflatten(3, x.shape[3:])
        return x + self.mlp(x)


class QKFormer(nn.Module):
    """``[B, C, H, W]``, or event frames ``[T, B, C, H, W]``, to logits ``[B, classes]``.

    The published code feeds the last neuron of self-attention with ``[T * B, C, N]``, so that an image's
    output depends on its neighbours in the batch. Here it is fed with ``[T, B, C, N]``, as the paper means it,
    which is equal to the published code at a batch of one.

    Args:
        variant: the published code that the checkpoint comes from, of VARIANTS.
        depths: blocks in each stage.
        official_bug: compute what the published code does, as a bare checkpoint's model must; svitc captures it
            only with ``--rewrite-model``, which mends it.

    Raises:
        ValueError: no such variant, not one depth a stage, or widths that the heads do not divide.
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
