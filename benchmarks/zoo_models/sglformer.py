"""SGLFormer: Zhang et al., "SGLFormer: Spiking Global-Local-Fusion Transformer with High Performance", Frontiers in
Neuroscience 2024. Windows join the batch in local attention; a depthwise convolution over tokens and time ends it."""

from __future__ import annotations

from torch import nn

from .definition import Definition
from .layers import ConvNorm, lif, split_heads


class ConvSpike(nn.Module):
    def __init__(self, width_in, width_out, kernel=1, groups=1, pool=False):
        super().__init__()
        self.conv, self.lif = ConvNorm(width_in, width_out, kernel, groups=groups), lif()
        self.pool = nn.MaxPool2d(3, 2, 1) if pool else None

    def forward(self, x):
        x = self.conv(x)
        if self.pool is not None:
            T, B, C, H, W = x.shape
            x = self.pool(x.flatten(0, 1)).reshape(T, B, C, H // 2, W // 2)
        return self.lif(x)


class GlobalAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q_conv, self.k_conv, self.v_conv = ConvSpike(dim, dim), ConvSpike(dim, dim), ConvSpike(dim, dim)
        self.attn_lif, self.proj_conv = lif(0.5), ConvSpike(dim, dim)

    def forward(self, x):
        T, B, C, H, W = x.shape
        q, k, v = (split_heads(conv(x), self.heads) for conv in (self.q_conv, self.k_conv, self.v_conv))
        attn = q @ k.transpose(-2, -1)
        x = self.attn_lif((attn @ v) * 0.125)
        x = x.transpose(3, 4).reshape(T, B, C, -1).reshape(T, B, C, H, W)
        return self.proj_conv(x)


class Partition(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, x):
        T, B, C, H, W = x.shape
        n = self.parts
        x = x.reshape(T, B, C, H // n, n, W // n, n).permute(0, 1, 4, 6, 2, 3, 5)
        return x.reshape(T, -1, C, H // n, W // n)


class Integration(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, x):
        T, _, C, h, w = x.shape
        n = self.parts
        x = x.reshape(T, -1, n, n, C, h, w).permute(0, 1, 4, 5, 2, 6, 3)
        return x.reshape(T, -1, C, int(h * n), int(w * n))


class LocalAttention(GlobalAttention):
    def __init__(self, dim, heads, parts=2):
        super().__init__(dim, heads)
        self.partition, self.integration = Partition(parts), Integration(parts)

    def forward(self, x):
        return self.integration(super().forward(self.partition(x)))


class LocalBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv = ConvSpike(dim, dim, 3, groups=dim)
        self.conv1, self.dwconv = ConvSpike(dim, 2 * dim), ConvSpike(2 * dim, 2 * dim, 3, 2 * dim)
        self.conv2 = ConvSpike(2 * dim, dim)

    def forward(self, x):
        x = x + self.conv(x)
        return self.conv2(self.dwconv(self.conv1(x))) + x


class MLP(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.mlp1, self.mlp2 = ConvSpike(dim, hidden), ConvSpike(hidden, dim)

    def forward(self, x):
        return self.mlp2(self.mlp1(x))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.loc = LocalBlock(dim)
        self.ssa1, self.mlp1 = LocalAttention(dim, heads), MLP(dim, 4 * dim)
        self.ssa2, self.mlp2 = GlobalAttention(dim, heads), MLP(dim, 4 * dim)

    def forward(self, x):
        x = x + self.loc(x)
        x = x + self.ssa1(x)
        x = x + self.mlp1(x)
        x = x + self.ssa2(x)
        return x + self.mlp2(x)


class SGLFormer(nn.Module):
    def __init__(self, T=4, dim=24, heads=4, size=32, classes=10):
        super().__init__()
        self.T, tokens = T, (size // 4) ** 2
        self.stem = ConvSpike(3, dim // 4, 3)
        self.tokenizer = nn.Sequential(
            ConvSpike(dim // 4, dim // 2, 3, pool=True), ConvSpike(dim // 2, dim, 3, pool=True)
        )
        self.blocks = nn.Sequential(Block(dim, heads))
        self.full_size_conv = nn.Conv2d(dim, dim, kernel_size=(tokens, T), groups=dim)
        self.bn = nn.BatchNorm2d(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = (x.unsqueeze(0)).repeat(self.T, 1, 1, 1, 1)
        B = x.shape[1]
        x = self.blocks(self.tokenizer(self.stem(x)))
        x = x.flatten(3).permute(1, 2, 3, 0)  # [B, C, N, T]
        x = self.bn(self.full_size_conv(x)).reshape(B, -1)
        return self.head(x)


ZOO = {"sglformer": Definition(SGLFormer, (3, 32, 32), "Zhang et al., Frontiers in Neuroscience 2024")}
