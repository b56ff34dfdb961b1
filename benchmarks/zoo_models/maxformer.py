"""Max-Former: Fang et al., "Spiking Neural Networks Need High-Frequency Information", NeurIPS 2025: the image and the
event model. Max pooling in patch embeddings and depthwise convolutions in early stages keep high frequencies; the event
model embeds with average pooling that does not count its padding, and reads ``[N, T, C, H, W]``."""

from __future__ import annotations

import torch
from torch import nn

from .definition import Definition
from .layers import MembraneMLP, lif, split_heads


class Embed(nn.Module):
    """Neuron, convolution, norm and perhaps pooling; returns what the convolution read, too."""

    def __init__(self, width_in, width_out, kernel=3, stride=1, pool=None, shortcut=False):
        super().__init__()
        self.lif = None if shortcut else lif()
        self.conv = nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width_out)
        self.pool = pool

    def forward(self, x, dual=False):
        if self.lif is not None:
            x = self.lif(x)
        feature = x
        x = self.bn(self.conv(x.flatten(0, 1).contiguous()))
        if self.pool is not None:
            x = self.pool(x)
        return (x, feature) if dual else x


class FirstEmbed(nn.Module):
    def __init__(self, channels, dim):
        super().__init__()
        self.proj_conv, self.proj_bn = nn.Conv2d(channels, dim // 2, 3, 1, 1, bias=False), nn.BatchNorm2d(dim // 2)
        self.embed1, self.embed2 = Embed(dim // 2, dim), Embed(dim // 2, dim, 1)

    def forward(self, x):
        T, B, _, H, W = x.shape
        x = self.proj_bn(self.proj_conv(x.flatten(0, 1).contiguous())).reshape(T, B, -1, H, W).contiguous()
        feature = x
        x = self.embed1(x)
        feature = self.embed2(feature)
        return (x + feature).reshape(T, B, -1, H, W).contiguous()


class LaterEmbed(nn.Module):
    def __init__(self, width_in, width_out, pool):
        super().__init__()
        self.embed1 = Embed(width_in, width_out)
        self.embed2 = Embed(width_out, width_out, pool=pool)
        self.shortcut = Embed(width_in, width_out, 1, stride=2, shortcut=True)

    def forward(self, x):
        T, B, _, H, W = x.shape
        x, feature = self.embed1(x, dual=True)
        x = self.embed2(x.reshape(T, B, -1, H, W).contiguous())
        return (x + self.shortcut(feature)).reshape(T, B, -1, H // 2, W // 2).contiguous()


class DepthwiseMixer(nn.Module):
    def __init__(self, dim, kernel):
        super().__init__()
        self.lif = lif()
        self.dwconv = nn.Conv2d(dim, dim, kernel, 1, kernel // 2, groups=dim)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x):
        T, B, C, H, W = x.shape
        return x + self.bn(self.dwconv(self.lif(x).flatten(0, 1))).reshape(T, B, C, H, W)


class Attention(nn.Module):
    """Spikformer's attention with a depthwise convolution after it."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.x_lif = lif()
        self.q_conv, self.q_bn, self.q_lif = nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), lif()
        self.k_conv, self.k_bn, self.k_lif = nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), lif()
        self.v_conv, self.v_bn, self.v_lif = nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), lif()
        self.attn_lif = lif(0.5)
        self.proj_conv, self.proj_bn = nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim)
        self.dwc_lif, self.dwc = lif(), nn.Conv2d(dim, dim, 5, padding=5 // 2, groups=dim)
        self.dwc_bn = nn.BatchNorm2d(dim)

    def forward(self, x):
        T, B, C, H, W = x.shape
        identity = x
        flat = self.x_lif(x).flatten(0, 1).contiguous()
        q = split_heads(self.q_lif(self.q_bn(self.q_conv(flat)).reshape(T, B, C, H, W)), self.heads)
        k = split_heads(self.k_lif(self.k_bn(self.k_conv(flat)).reshape(T, B, C, H, W)), self.heads)
        v = split_heads(self.v_lif(self.v_bn(self.v_conv(flat)).reshape(T, B, C, H, W)), self.heads)
        x = (q @ (k.transpose(-2, -1) @ v)) * 0.125
        x = self.attn_lif(x.transpose(3, 4).reshape(T, B, C, H * W).contiguous())
        x = self.proj_bn(self.proj_conv(x.flatten(0, 1))).reshape(T, B, C, H, W)
        x = self.dwc_bn(self.dwc(self.dwc_lif(x).flatten(0, 1).contiguous())).reshape(T, B, C, H, W)
        return x + identity


class MaxFormer(nn.Module):
    def __init__(self, channels=3, dim=32, heads=4, T=4, classes=10, events=False):
        super().__init__()
        self.T, self.events = T, events

        def pool():
            if events:
                return nn.AvgPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=False, count_include_pad=False)
            return nn.MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=False)

        self.patch_embed1 = FirstEmbed(channels, dim // 4)
        self.stage1 = nn.Sequential(DepthwiseMixer(dim // 4, 7), MembraneMLP(dim // 4, dim))
        self.patch_embed2 = LaterEmbed(dim // 4, dim // 2, pool())
        self.stage2 = nn.Sequential(DepthwiseMixer(dim // 2, 5), MembraneMLP(dim // 2, 2 * dim))
        self.patch_embed3 = LaterEmbed(dim // 2, dim, pool())
        self.stage3 = nn.Sequential(Attention(dim, heads), MembraneMLP(dim, 4 * dim))
        self.head_lif, self.head = lif(), nn.Linear(dim, classes)

    def forward(self, x):
        if self.events:
            x = x.permute(1, 0, 2, 3, 4)
        else:
            x = (x.unsqueeze(0)).repeat(self.T, 1, 1, 1, 1)
        x = self.stage1(self.patch_embed1(x))
        x = self.stage2(self.patch_embed2(x))
        x = self.stage3(self.patch_embed3(x))
        x = torch.flatten(self.head_lif(x), 3).mean(3)
        return self.head(x.mean(0))


ZOO = {
    "maxformer-image": Definition(MaxFormer, (3, 16, 16), "Fang et al., NeurIPS 2025"),
    "maxformer-events": Definition(
        lambda: MaxFormer(channels=2, events=True), (4, 2, 32, 32), "Fang et al., NeurIPS 2025", batch_first=True
    ),
}
