"""Integer spikes."""

from __future__ import annotations

import torch
from torch import nn


class IntegerSpike(nn.Module):
    """``round(clamp(x, 0, levels)) / norm``, halves to even."""

    def __init__(self, levels: int = 4, norm: float = 4) -> None:
        super().__init__()
        self.levels, self.norm = levels, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.round(torch.clamp(x, 0, self.levels)) / self.norm
