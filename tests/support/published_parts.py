"""Layers in the manner of the published repositories: what they do, and how awkwardly, in code of our own.

Kept are shapes from the block's width, sizes as literals, borders that are written row by row, integer spikes as
autograd functions.
"""

from __future__ import annotations

import torch
from spikingjelly.activation_based import neuron
from torch import nn
from torch.nn import functional as F


def lif(threshold: float = 1.0) -> nn.Module:
    return neuron.LIFNode(tau=2.0, v_threshold=threshold, detach_reset=True, step_mode="m")


class RoundOff(torch.autograd.Function):
    """Whole spikes, halves to even."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x, low, high):
        ctx.range = low, high
        ctx.save_for_backward(x)
        return torch.round(torch.clamp(x, min=low, max=high))

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ((x > ctx.range[0]) & (x < ctx.range[1])), None, None


class HalfUp(torch.autograd.Function):
    """Whole spikes, halves up."""

    @staticmethod
    def forward(ctx, x, most=4):
        ctx.save_for_backward(x)
        return torch.floor(torch.clamp(x, 0, most) + 0.5)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ((x > 0) & (x < 4)), None


class Rounded(nn.Module):
    def __init__(self, levels: int = 4, norm: int = 4) -> None:
        super().__init__()
        self.levels, self.norm = levels, norm

    def forward(self, x):
        return RoundOff.apply(x, 0, self.levels) / self.norm


class Floored(nn.Module):
    def __init__(self, norm: int = 4) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return HalfUp.apply(x) / self.norm


SPIKES = (Rounded, Floored)


class Heads(nn.Module):
    """Shapes as they are written there: all from the block's own width, whatever a layer's real one is."""

    def split(self, x, wide=1):
        t, b, c, n = x.shape[0], x.shape[1], self.dim * wide, x.shape[-1]
        x = x.reshape(t, b, c, n)
        return x.transpose(-1, -2).reshape(t, b, n, self.heads, c // self.heads).permute(0, 1, 3, 2, 4).contiguous()


class Stem(nn.Module):
    """Two convolutions and a position convolution; what is added are spikes, or membranes."""

    def __init__(self, channels: int, dim: int, membrane: bool = False) -> None:
        super().__init__()
        self.membrane = membrane
        for i, (n, m) in enumerate(((channels, dim // 2), (dim // 2, dim), (dim, dim))):
            setattr(self, f"conv{i}", nn.Conv2d(n, m, 3, 1, 1, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(m))
            setattr(self, f"lif{i}", lif())
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, x, hook=None):
        T, B, _, H, W = x.shape
        x = self.bn0(self.conv0(x.flatten(0, 1))).reshape(T, B, -1, H, W).contiguous()
        x = self.maxpool(self.lif0(x).flatten(0, 1).contiguous())
        x = self.bn1(self.conv1(x))
        if self.membrane:
            x = feature = self.maxpool(x)
            x = self.lif1(x.reshape(T, B, -1, H // 4, W // 4))
            if hook is not None:
                hook["stem"] = x.detach()
            x = self.bn2(self.conv2(x.flatten(0, 1)))
            return (x + feature).reshape(T, B, -1, H // 4, W // 4), hook
        feature = self.maxpool(self.lif1(x.reshape(T, B, -1, H // 2, W // 2)).flatten(0, 1))
        x = self.lif2(self.bn2(self.conv2(feature)).reshape(T, B, -1, H // 4, W // 4))
        return x + feature.reshape(T, B, -1, H // 4, W // 4), hook


class TwoPaths(nn.Module):
    """A stem whose second, shorter path is added as spikes."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.conv0, self.bn0, self.lif0 = nn.Conv2d(channels, half, 3, 1, 1), nn.BatchNorm2d(half), lif()
        self.conv1, self.bn1, self.lif1 = nn.Conv2d(half, dim, 3, 1, 1), nn.BatchNorm2d(dim), lif()
        self.res_conv, self.res_bn, self.res_lif = nn.Conv2d(half, dim, 1, 4), nn.BatchNorm2d(dim), lif()
        self.maxpool = nn.MaxPool2d(5, 4, 2)

    def forward(self, x):
        T, B, _, H, W = x.shape
        x = self.lif0(self.bn0(self.conv0(x.flatten(0, 1))).reshape(T, B, -1, H, W)).flatten(0, 1)
        feature = self.res_bn(self.res_conv(x)).reshape(T, B, -1, H // 4, W // 4)
        x = self.lif1(self.maxpool(self.bn1(self.conv1(x))).reshape(T, B, -1, H // 4, W // 4))
        return x + self.res_lif(feature)


class SelfAttention(Heads):
    """Spikes in, spikes out; ``together`` is the mistake of running time and batch through a neuron as one."""

    def __init__(self, dim: int, heads: int, keys_first: bool = True, together: bool = False) -> None:
        super().__init__()
        self.dim, self.heads, self.keys_first, self.together = dim, heads, keys_first, together
        for name in ("q", "k", "v", "proj"):
            setattr(self, f"{name}_conv", nn.Conv1d(dim, dim, 1, bias=name == "proj"))
            setattr(self, f"{name}_bn", nn.BatchNorm1d(dim))
            setattr(self, f"{name}_lif", lif())
        self.attn_lif = lif(0.5)

    def forward(self, x):
        T, B, C, H, W = x.shape
        x = x.flatten(3)
        flat = x.flatten(0, 1)
        q, k, v = (
            self.split(
                getattr(self, f"{n}_lif")(getattr(self, f"{n}_bn")(getattr(self, f"{n}_conv")(flat)).reshape(x.shape))
            )
            for n in "qkv"
        )
        x = q @ (k.transpose(-2, -1) @ v) if self.keys_first else (q @ k.transpose(-2, -1)) @ v
        x = (x * 0.125).transpose(3, 4).reshape(T, B, C, H * W).contiguous()
        x = self.proj_bn(self.proj_conv(self.attn_lif(x).flatten(0, 1)))
        if self.together:
            return self.proj_lif(x).reshape(T, B, C, H, W)
        return self.proj_lif(x.reshape(T, B, C, H, W))


class TokenAttention(Heads):
    """One gate for each head and token, from the sum over its query."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        for name in ("q", "k", "proj"):
            setattr(self, f"{name}_conv", nn.Conv1d(dim, dim, 1))
            setattr(self, f"{name}_bn", nn.BatchNorm1d(dim))
            setattr(self, f"{name}_lif", lif())
        self.attn_lif = lif(0.5)

    def forward(self, x):
        T, B, C, H, W = x.shape
        flat = x.flatten(3).flatten(0, 1)
        q = self.q_lif(self.q_bn(self.q_conv(flat)).reshape(T, B, C, H * W))
        k = self.k_lif(self.k_bn(self.k_conv(flat)).reshape(T, B, C, H * W))
        q = q.unsqueeze(2).reshape(T, B, self.heads, C // self.heads, H * W)
        k = k.unsqueeze(2).reshape(T, B, self.heads, C // self.heads, H * W)
        x = torch.mul(self.attn_lif(torch.sum(q, dim=3, keepdim=True)), k).flatten(2, 3)
        return self.proj_lif(self.proj_bn(self.proj_conv(x.flatten(0, 1))).reshape(T, B, C, H, W))


class FusedAttention(Heads):
    """One convolution for queries, keys and values, cut in three."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.qkv_conv, self.qkv_bn, self.qkv_lif = nn.Conv2d(dim, 3 * dim, 1), nn.BatchNorm2d(3 * dim), lif()
        self.proj_conv, self.proj_bn = nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim)
        self.attn_lif, self.proj_lif = lif(0.5), lif()

    def forward(self, x):
        T, B, C, H, W = x.shape
        x = self.qkv_lif(self.qkv_bn(self.qkv_conv(x.flatten(0, 1))).reshape(T, B, 3 * C, H, W))
        q, k, v = (self.split(part.flatten(3)) for part in x.chunk(3, dim=2))
        x = ((q @ (k.transpose(-2, -1) @ v)) * 0.25).transpose(3, 4).reshape(T, B, C, H, W)
        return self.proj_lif(self.proj_bn(self.proj_conv(self.attn_lif(x).flatten(0, 1))).reshape(T, B, C, H, W))


class DrivenAttention(Heads):
    """Membrane shortcut; queries gated by where keys and values meet; with ``pool``, in a window that slides over
    tokens and channels alike."""

    def __init__(self, dim: int, heads: int, pool: bool) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.pool = nn.MaxPool3d((1, 3, 3), stride=(1, 1, 1), padding=(0, 1, 1)) if pool else nn.Identity()
        for name in ("q", "k", "v", "proj"):
            setattr(self, f"{name}_conv", nn.Conv2d(dim, dim, 1, bias=name == "proj"))
            setattr(self, f"{name}_bn", nn.BatchNorm2d(dim))
            setattr(self, f"{name}_lif", lif())
        self.gate_lif = lif(0.5)

    def forward(self, x, hook=None):
        T, B, C, H, W = x.shape
        identity, x = x, self.proj_lif(x)
        if hook is not None:
            hook["first"] = x.detach()
        flat = x.flatten(0, 1)
        q = self.split(self.q_lif(self.q_bn(self.q_conv(flat)).reshape(T, B, C, H, W)).flatten(3))
        k = self.split(self.pool(self.k_lif(self.k_bn(self.k_conv(flat)).reshape(T, B, C, H, W))).flatten(3))
        v = self.split(self.pool(self.v_lif(self.v_bn(self.v_conv(flat)).reshape(T, B, C, H, W))).flatten(3))
        gate = self.gate_lif(self.pool(k.mul(v)).sum(dim=-2, keepdim=True))
        x = self.pool(q.mul(gate)).transpose(3, 4).reshape(T, B, C, H, W).contiguous()
        return self.proj_bn(self.proj_conv(x.flatten(0, 1))).reshape(T, B, C, H, W) + identity, hook


class Mlp(nn.Module):
    """Neurons after the convolutions, or before them; the hidden width is a literal."""

    def __init__(self, dim: int, hidden: int, before: bool = False) -> None:
        super().__init__()
        self.before, self.hidden = before, hidden
        self.fc1_conv, self.fc1_bn, self.fc1_lif = nn.Conv2d(dim, hidden, 1), nn.BatchNorm2d(hidden), lif()
        self.fc2_conv, self.fc2_bn, self.fc2_lif = nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim), lif()

    def forward(self, x):
        T, B, C, H, W = x.shape
        x = self.fc1_lif(x) if self.before else x
        x = self.fc1_bn(self.fc1_conv(x.flatten(0, 1))).reshape(T, B, self.hidden, H, W).contiguous()
        x = self.fc2_lif(x) if self.before else self.fc1_lif(x)
        x = self.fc2_bn(self.fc2_conv(x.flatten(0, 1))).reshape(T, B, C, H, W).contiguous()
        return x if self.before else self.fc2_lif(x)


class LinearMlp(nn.Module):
    """The same by linear layers, with batch norms that want channels in the middle."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.fc1_conv, self.fc1_bn, self.fc1_lif = nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), lif()
        self.fc2_conv, self.fc2_bn, self.fc2_lif = nn.Linear(hidden, dim), nn.BatchNorm1d(dim), lif()

    def forward(self, x):
        T, B, C, H, W = x.shape
        x = x.flatten(3).transpose(-1, -2)
        x = self.fc1_bn(self.fc1_conv(x.flatten(0, 1)).transpose(-1, -2)).transpose(-1, -2)
        x = self.fc1_lif(x.reshape(T, B, H * W, self.hidden).contiguous())
        x = self.fc2_bn(self.fc2_conv(x.flatten(0, 1)).transpose(-1, -2)).transpose(-1, -2)
        return self.fc2_lif(x.reshape(T, B, H * W, C)).transpose(-1, -2).reshape(T, B, C, H, W)


class BorderNorm(nn.Module):
    """Batch norm, and around it a border of what it makes of zero."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.width, self.bn = width, nn.BatchNorm2d(channels)

    def forward(self, x):
        w, bn = self.width, self.bn
        border = bn.bias.detach() - bn.running_mean * bn.weight.detach() / torch.sqrt(bn.running_var + bn.eps)
        y, border = F.pad(bn(x), [w] * 4), border.view(1, -1, 1, 1)
        y[:, :, :w, :] = y[:, :, -w:, :] = border
        y[:, :, :, :w] = y[:, :, :, -w:] = border
        return y


class RepConv(nn.Module):
    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(n, n, 3, groups=n, bias=False)
        last = nn.Sequential(depthwise, nn.Conv2d(n, m, 1, bias=False), nn.BatchNorm2d(m))
        self.body = nn.Sequential(nn.Conv2d(n, n, 1, bias=False), BorderNorm(1, n), last)

    def forward(self, x):
        return self.body(x)


class SepConv(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        wide = 2 * dim
        self.lif1, self.pwconv1, self.bn1 = lif(), nn.Conv2d(dim, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.lif2, self.dwconv = lif(), nn.Conv2d(wide, wide, 7, padding=3, groups=wide, bias=False)
        self.pwconv2, self.bn2 = nn.Conv2d(wide, dim, 1, bias=False), nn.BatchNorm2d(dim)

    def forward(self, x):
        T, B, _, H, W = x.shape
        x = self.bn1(self.pwconv1(self.lif1(x).flatten(0, 1))).reshape(T, B, -1, H, W)
        return self.bn2(self.pwconv2(self.dwconv(self.lif2(x).flatten(0, 1)))).reshape(T, B, -1, H, W)


class RepAttention(Heads):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        for name in ("q", "k", "v", "proj"):
            setattr(self, f"{name}_conv", nn.Sequential(RepConv(dim, dim), nn.BatchNorm2d(dim)))
        self.head_lif, self.q_lif, self.k_lif, self.v_lif, self.attn_lif = lif(), lif(), lif(), lif(), lif(0.5)

    def forward(self, x):
        T, B, C, H, W = x.shape
        x = self.head_lif(x)
        q = self.split(self.q_lif(self.q_conv(x.flatten(0, 1)).reshape(T, B, C, H, W)).flatten(3))
        k = self.split(self.k_lif(self.k_conv(x.flatten(0, 1)).reshape(T, B, C, H, W)).flatten(3))
        v = self.split(self.v_lif(self.v_conv(x.flatten(0, 1)).reshape(T, B, C, H, W)).flatten(3))
        x = (q @ (k.transpose(-2, -1) @ v)) * 0.125
        x = self.attn_lif(x.transpose(3, 4).reshape(T, B, C, H * W).contiguous()).reshape(T, B, C, H, W)
        return self.proj_conv(x.flatten(0, 1)).reshape(T, B, C, H, W)


class IntegerAttention(Heads):
    """Without time: ``[B, C, H, W]``; values are wider than queries; the scale is computed from the width."""

    def __init__(self, dim: int, heads: int, wide: int = 4) -> None:
        super().__init__()
        self.dim, self.heads, self.wide, self.scale = dim, heads, wide, (dim // heads) ** -0.5
        for name, n, m in (("q", 1, 1), ("k", 1, 1), ("v", 1, wide), ("proj", wide, 1)):
            conv = nn.Conv2d(n * dim, m * dim, 1, bias=False)
            setattr(self, f"{name}_conv", nn.Sequential(conv, nn.BatchNorm2d(m * dim)))
        for name in ("head", "q", "k", "v", "attn"):
            setattr(self, f"{name}_spike", Rounded())

    def forward(self, x):
        B, C, H, W = x.shape
        N, C_v = H * W, int(C * self.wide)
        x = self.head_spike(x)
        q, k, v = self.q_conv(x), self.k_conv(x), self.v_conv(x)

        def heads(x, c):
            return x.flatten(2).transpose(-1, -2).reshape(B, N, self.heads, c // self.heads).permute(0, 2, 1, 3)

        q, k, v = heads(self.q_spike(q), C), heads(self.k_spike(k), C), heads(self.v_spike(v), C_v)
        x = ((q @ k.transpose(-2, -1)) @ v) * (self.scale * 2)
        x = self.attn_spike(x.transpose(2, 3).reshape(B, C_v, N).contiguous()).reshape(B, C_v, H, W)
        return self.proj_conv(x).reshape(B, C, H, W)


class SpikingSepConv(nn.Module):
    """A neuron and a batch norm at each of the three convolutions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        wide = 2 * dim
        self.spike1, self.spike2, self.spike3 = Rounded(), Rounded(), Rounded()
        self.pwconv1 = nn.Sequential(nn.Conv2d(dim, wide, 1, bias=False), nn.BatchNorm2d(wide))
        self.dwconv = nn.Sequential(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide))
        self.pwconv2 = nn.Sequential(nn.Conv2d(wide, dim, 1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x):
        return self.pwconv2(self.spike3(self.dwconv(self.spike2(self.pwconv1(self.spike1(x))))))
