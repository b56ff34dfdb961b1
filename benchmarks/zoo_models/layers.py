"""Parts that several spiking transformers share, in the style of their repositories."""

from __future__ import annotations

import itertools

from spikingjelly.activation_based import neuron, surrogate
from torch import nn


def lif(threshold=1.0, **options):
    """Return the LIF neuron that nearly all spiking transformers use."""
    return neuron.LIFNode(
        tau=2.0,
        v_threshold=threshold,
        detach_reset=True,
        surrogate_function=surrogate.ATan(),
        step_mode="m",
        **options,
    )


class ConvNorm(nn.Module):
    """Convolution and batch norm on ``[T, B, C, H, W]``, with steps beside the batch."""

    def __init__(self, width_in, width_out, kernel=1, stride=1, groups=1, bias=False):
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.bn = nn.BatchNorm2d(width_out)

    def forward(self, x):
        T, B = x.shape[:2]
        x = self.bn(self.conv(x.flatten(0, 1)))
        return x.reshape(T, B, *x.shape[1:])


class MembraneMLP(nn.Module):
    """MLP with a membrane shortcut: neuron, 1x1 convolution and norm, twice."""

    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1_lif, self.fc1 = lif(), ConvNorm(dim, hidden, bias=True)
        self.fc2_lif, self.fc2 = lif(), ConvNorm(hidden, dim, bias=True)

    def forward(self, x):
        identity = x
        x = self.fc1(self.fc1_lif(x))
        x = self.fc2(self.fc2_lif(x))
        return x + identity


class SpikeMLP(nn.Module):
    """MLP on spikes: 1x1 convolution, norm and neuron, twice; spikes are added to the stream."""

    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc1_lif = ConvNorm(dim, hidden, bias=True), lif()
        self.fc2, self.fc2_lif = ConvNorm(hidden, dim, bias=True), lif()

    def forward(self, x):
        x = self.fc1_lif(self.fc1(x))
        return self.fc2_lif(self.fc2(x))


class Stem(nn.Module):
    """Patch splitting of SDT: conv, norm, neuron and max pooling, then a convolution for positions.

    Args:
        channels: Channels of the input.
        dim: Width of the output.
        pools: Number of poolings, each of which halves height and width.
    """

    def __init__(self, channels, dim, pools=2):
        super().__init__()
        widths = [channels] + [dim >> (pools - 1 - i) for i in range(pools)]
        self.convs = nn.ModuleList(ConvNorm(a, b, 3) for a, b in itertools.pairwise(widths))
        self.lifs = nn.ModuleList(lif() for _ in range(pools))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.rpe = ConvNorm(dim, dim, 3)

    def forward(self, x):
        for i, (conv, spike) in enumerate(zip(self.convs, self.lifs, strict=True)):
            x = conv(x)
            T, B, C, H, W = x.shape
            if i < len(self.convs) - 1:
                x = spike(x)
            x = self.pool(x.flatten(0, 1)).reshape(T, B, C, (H + 1) // 2, (W + 1) // 2)
        feature = x
        return self.rpe(self.lifs[-1](x)) + feature


def split_heads(x, heads):
    """Return ``[T, B, C, H, W]`` as ``[T, B, heads, N, C / heads]``."""
    T, B, C, H, W = x.shape
    return x.flatten(3).transpose(-1, -2).reshape(T, B, H * W, heads, C // heads).permute(0, 1, 3, 2, 4).contiguous()
