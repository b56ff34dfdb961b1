"""The structure that Meta-SpikeFormer and E-SpikeFormer share: two stages of convolution, two of attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

Factory = Callable[..., nn.Module]
# downsampling layers and lists of blocks, in order of execution
STAGES = (
    "downsample1_1",
    "ConvBlock1_1",
    "downsample1_2",
    "ConvBlock1_2",
    "downsample2",
    "ConvBlock2_1",
    "ConvBlock2_2",
    "downsample3",
    "block3",
    "downsample4",
    "block4",
)


class FourStages(nn.Module):
    """A model's stages, registered under their published names.

    Args:
        embed_dims: Width of each stage; the first half of stage 1 is half as wide.
        depths: Number of blocks in stage 3 and in stage 4.
        down: Builds a downsampling layer from ``(in_channels, out_channels, kernel_size, stride, first)``.
        conv_block, block: Build a block of a given width.

    Raises:
        ValueError: There are not four widths and two depths.
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        in_channels: int,
        down: Factory,
        conv_block: Factory,
        block: Factory,
    ) -> None:
        super().__init__()
        if len(embed_dims) != 4 or len(depths) != 2:
            raise ValueError(f"expected four widths and two depths, got {embed_dims} and {depths}")
        one, two, three, four = embed_dims
        self.downsample1_1 = down(in_channels, one // 2, 7, 2, first=True)
        self.ConvBlock1_1 = nn.ModuleList([conv_block(one // 2)])
        self.downsample1_2 = down(one // 2, one, 3, 2)
        self.ConvBlock1_2 = nn.ModuleList([conv_block(one)])
        self.downsample2 = down(one, two, 3, 2)
        self.ConvBlock2_1 = nn.ModuleList([conv_block(two)])
        self.ConvBlock2_2 = nn.ModuleList([conv_block(two)])
        self.downsample3 = down(two, three, 3, 2)
        self.block3 = nn.ModuleList(block(three) for _ in range(depths[0]))
        self.downsample4 = down(three, four, 3, 1)
        self.block4 = nn.ModuleList(block(four) for _ in range(depths[1]))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Run all stages: ``[..., C, H, W] -> [..., C', H / 16, W / 16]``."""
        for name in STAGES:
            part = getattr(self, name)
            for layer in part if isinstance(part, nn.ModuleList) else (part,):
                x = layer(x)
        return x
