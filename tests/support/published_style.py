"""Small SViTs in the manner of the published repositories, of the layers of official_parts.py.

What is typical of whole models is kept, too: event frames with the batch first, hooks in dictionaries, heads that
only teach, layers that nothing calls.
"""

from __future__ import annotations

import torch
from spikingjelly.activation_based import layer
from torch import nn

from support.published_parts import (
    DrivenAttention,
    Floored,
    IntegerAttention,
    Mlp,
    RepAttention,
    Rounded,
    SelfAttention,
    SepConv,
    SpikingSepConv,
    Stem,
    TokenAttention,
    TwoPaths,
    lif,
)

IMAGE, EVENTS = (3, 16, 24), (4, 2, 16, 24)


class SpikformerStyle(nn.Module):
    """Spikes are added. ``attention`` and ``mlp`` make the layers of a block."""

    def __init__(self, attention, mlp, dim: int = 16, T: int = 4, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.T = T
        self.patch_embed = Stem(channels, dim)
        self.block = nn.ModuleList(nn.ModuleDict({"attn": attention(dim), "mlp": mlp(dim)}) for _ in range(2))
        self.head = nn.Linear(dim, classes)
        self.norm = nn.LayerNorm(dim)  # never used

    def forward(self, x):
        x = x.permute(1, 0, 2, 3, 4) if x.ndim == 5 else x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x, _ = self.patch_embed(x)
        for block in self.block:
            x = x + block["attn"](x)
            x = x + block["mlp"](x)
        return self.head(x.flatten(3).mean(3).mean(0))


class DrivenStyle(nn.Module):
    """Membranes are added; hooks go in and come out."""

    def __init__(self, pool: bool = False, dim: int = 16, T: int = 4, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.T = T
        self.patch_embed = Stem(channels, dim, membrane=True)
        self.attn, self.mlp = DrivenAttention(dim, 2, pool), Mlp(dim, 4 * dim, before=True)
        self.head_lif, self.head = lif(), nn.Linear(dim, classes)

    def forward(self, x, hook=None):
        if len(x.shape) < 5:
            x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        else:
            x = x.transpose(0, 1).contiguous()
        x, hook = self.patch_embed(x, hook=hook)
        x, hook = self.attn(x, hook=hook)
        x = x + self.mlp(x)
        x = self.head_lif(x.flatten(3).mean(3))
        if hook is not None:
            hook["head"] = x.detach()
        return self.head(x).mean(0), hook


class MetaStyle(nn.Module):
    """Separable convolutions, then attention with re-parameterisable projections; a second head that teaches."""

    def __init__(self, dim: int = 12, T: int = 1, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.T, wide = T, 2 * dim
        self.stem_conv, self.stem_bn = nn.Conv2d(channels, dim, 7, 2, 3), nn.BatchNorm2d(dim)
        self.sep = SepConv(dim)
        self.conv1, self.bn1 = nn.Conv2d(dim, 4 * dim, 3, padding=1, bias=False), nn.BatchNorm2d(4 * dim)
        self.conv2, self.bn2 = nn.Conv2d(4 * dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.lif1, self.lif2, self.lif3, self.lif = lif(), lif(), lif(), lif()
        self.down_conv, self.down_bn = nn.Conv2d(dim, wide, 3, 2, 1), nn.BatchNorm2d(wide)
        self.attn, self.mlp = RepAttention(wide, 2), Mlp(wide, 4 * wide, before=True)
        self.head, self.head_kd = nn.Linear(wide, classes), nn.Linear(wide, classes)

    def forward(self, x):
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        T, B, _, H, W = x.shape
        x = self.stem_bn(self.stem_conv(x.flatten(0, 1))).reshape(T, B, -1, H // 2, W // 2).contiguous()
        x = self.sep(x) + x
        T, B, C, H, W = x.shape
        y = self.bn1(self.conv1(self.lif1(x).flatten(0, 1))).reshape(T, B, 4 * C, H, W)
        x = x + self.bn2(self.conv2(self.lif2(y).flatten(0, 1))).reshape(T, B, C, H, W)
        x = self.down_bn(self.down_conv(self.lif3(x).flatten(0, 1))).reshape(T, B, -1, H // 2, W // 2)
        x = x + self.attn(x)
        x = x + self.mlp(x)
        x = self.lif(x.flatten(3).mean(3))
        y, x = self.head_kd(x).mean(0), self.head(x).mean(0)
        return (x, y) if self.training else (x + y) / 2


class IntegerStyle(nn.Module):
    """Integer spikes, no time at all."""

    def __init__(self, dim: int = 16, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.stem_conv, self.stem_bn = nn.Conv2d(channels, dim, 7, 4, 3), nn.BatchNorm2d(dim)
        self.conv, self.attn = SpikingSepConv(dim), IntegerAttention(dim, 2)
        self.fc1, self.fc1_bn, self.fc1_spike = nn.Conv1d(dim, 4 * dim, 1), nn.BatchNorm1d(4 * dim), Rounded()
        self.fc2, self.fc2_bn, self.fc2_spike = nn.Conv1d(4 * dim, dim, 1), nn.BatchNorm1d(dim), Rounded()
        self.spike, self.head = Rounded(norm=1), nn.Linear(dim, classes)

    def forward(self, x):
        x = self.stem_bn(self.stem_conv(x))
        x = x + self.conv(x)
        x = x + self.attn(x)
        B, C, H, W = x.shape
        y = self.fc1_bn(self.fc1(self.fc1_spike(x.flatten(2)))).reshape(B, 4 * C, H * W)
        x = x + self.fc2_bn(self.fc2(self.fc2_spike(y))).reshape(B, C, H, W)
        return self.head(self.spike(x.flatten(2).mean(2)))


class ScaledStyle(nn.Module):
    """Integer spikes over time, layers run by SpikingJelly's container, residuals scaled channel by channel."""

    def __init__(self, dim: int = 16, T: int = 2, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.T = T
        self.stem = layer.SeqToANNContainer(nn.Conv2d(channels, dim, 7, 4, 3), nn.BatchNorm2d(dim))
        self.fc1, self.fc1_bn, self.fc1_spike = nn.Conv1d(dim, 4 * dim, 1), nn.BatchNorm1d(4 * dim), Floored()
        self.fc2, self.fc2_bn, self.fc2_spike = nn.Conv1d(4 * dim, dim, 1), nn.BatchNorm1d(dim), Floored()
        self.layer_scale = nn.Parameter(torch.linspace(0.5, 1.5, dim))
        self.spike, self.head, self.head_kd = Floored(norm=1), nn.Linear(dim, classes), nn.Linear(dim, classes)

    def forward(self, x):
        x = self.stem(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)).flatten(3)
        T, B, C, N = x.shape
        y = self.fc1_bn(self.fc1(self.fc1_spike(x).flatten(0, 1))).reshape(T, B, 4 * C, N).contiguous()
        y = self.fc2_bn(self.fc2(self.fc2_spike(y).flatten(0, 1))).reshape(T, B, C, N).contiguous()
        x = x + y * self.layer_scale.unsqueeze(0).unsqueeze(0).unsqueeze(-1)
        x = x.flatten(3).mean(3)
        return (self.head(x).mean(0) + self.head_kd(self.spike(x)).mean(0)) / 2


class QKStyle(nn.Module):
    def __init__(self, together: bool, dim: int = 16, T: int = 4, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.T = T
        self.patch_embed = TwoPaths(channels, dim)
        self.token, self.mlp1 = TokenAttention(dim, 2), Mlp(dim, 2 * dim)
        self.attn, self.mlp2 = SelfAttention(dim, 2, together=together), Mlp(dim, 2 * dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = x.permute(1, 0, 2, 3, 4) if x.ndim == 5 else x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = self.patch_embed(x)
        for part in (self.token, self.mlp1, self.attn, self.mlp2):
            x = x + part(x)
        return self.head(x.flatten(3).mean(3).mean(0))
