"""The skeleton that Meta-SpikeFormer and E-SpikeFormer share: two stages of convolution, two of attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

Make = Callable[..., nn.Module]
# downsampling layers and lists of blocks, in order
ORDER = (
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
SCALE_DOWN = 16  # of the image's sides, in all


class FourStages(nn.Module):
    """Registers the stages under their published names.

    Args:
        embed_dims: width of each stage; the first half of stage 1 is half as wide.
        depths: blocks in stage 3 and in stage 4.
        down: makes a downsampling layer of ``(n, m, kernel_size, stride, first)``.
        conv_block, block: make a block of a width.

    Raises:
        ValueError: not four widths and two depths.
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        in_channels: int,
        down: Make,
        conv_block: Make,
        block: Make,
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
        for name in ORDER:
            part = getattr(self, name)
            for layer in part if isinstance(part, nn.ModuleList) else (part,):
                x = layer(x)
        return x
