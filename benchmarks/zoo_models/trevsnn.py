"""T-RevSNN: Hu et al., "High-Performance Temporal Reversible Spiking Neural Networks with O(L) Training Memory and O(1)
Inference Cost", ICML 2024. Each time step is a forward pass through its own group of channels of the encoded image;
only the key neuron at the end of a stage hands its membrane to the next step, with the stage above fused in."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from .definition import Definition
from .neurons import AtanSpike, Spiking


class KeyNeuron(Spiking):
    """Neuron that returns its spikes and its membrane, which the caller keeps for the next step."""

    def __init__(self, threshold=1.0):
        super().__init__()
        self.threshold = threshold
        self.decay = nn.Parameter(torch.tensor(0.0))

    def forward(self, current, membrane=None):
        if membrane is not None:
            current = torch.sigmoid(self.decay) * membrane + current
        spike = AtanSpike.apply(current - self.threshold, 4.0)
        return spike, current * (1 - spike)


class StepSpike(Spiking):
    """Spikes of a single step, without a membrane."""

    def forward(self, x):
        return AtanSpike.apply(x - 0.5, 4.0)


class Block(nn.Module):
    """ConvNeXt's block on spikes, with a learned scale per channel."""

    def __init__(self, dim):
        super().__init__()
        self.spike1, self.dwconv, self.bn1 = StepSpike(), nn.Conv2d(dim, dim, 5, 1, 2, groups=dim), nn.BatchNorm2d(dim)
        self.spike2, self.pw1, self.bn2 = StepSpike(), nn.Conv2d(dim, 2 * dim, 1), nn.BatchNorm2d(2 * dim)
        self.spike3, self.pw2, self.bn3 = StepSpike(), nn.Conv2d(2 * dim, dim, 1), nn.BatchNorm2d(dim)
        self.gamma = nn.Parameter(0.5 * torch.ones(dim))

    def forward(self, x):
        y = self.bn1(self.dwconv(self.spike1(x)))
        y = self.bn2(self.pw1(self.spike2(y)))
        y = self.bn3(self.pw2(self.spike3(y)))
        return x + self.gamma[:, None, None] * y


class TRevSNN(nn.Module):
    def __init__(self, T=4, widths=(16, 32), classes=10):
        super().__init__()
        self.T = T
        self.encode, self.encode_bn = nn.Conv2d(3, T * widths[0], 3, 2, 1), nn.BatchNorm2d(T * widths[0])
        self.downs = nn.ModuleList(
            nn.Identity() if i == 0 else nn.Sequential(nn.Conv2d(widths[i - 1], w, 2, 2), nn.BatchNorm2d(w))
            for i, w in enumerate(widths)
        )
        self.blocks = nn.ModuleList(Block(w) for w in widths)
        self.keys = nn.ModuleList(KeyNeuron() for _ in widths)
        self.backs = nn.ModuleList(nn.Conv2d(b, a, 1, bias=False) for a, b in itertools.pairwise(widths))
        self.alphas = nn.ParameterList(nn.Parameter(torch.full((1, w, 1, 1), 0.5)) for w in widths)
        self.norm, self.head = nn.BatchNorm1d(widths[-1]), nn.Linear(widths[-1], classes)

    def forward(self, x):
        groups = torch.chunk(self.encode_bn(self.encode(x)), self.T, dim=1)
        membranes = [None] * len(self.blocks)
        spikes = [None] * len(self.blocks)
        for step in range(self.T):
            feature = groups[step]
            for i, block in enumerate(self.blocks):
                current = block(self.downs[i](feature)) * self.alphas[i]
                if i + 1 < len(self.blocks) and spikes[i + 1] is not None:
                    back = self.backs[i](spikes[i + 1])
                    current = current + F.interpolate(back, size=current.shape[-2:], mode="nearest")
                spikes[i], membranes[i] = self.keys[i](current, membranes[i])
                feature = spikes[i]
        x = spikes[-1].mean([-2, -1])
        return self.head(self.norm(x))


ZOO = {"t-revsnn": Definition(TRevSNN, (3, 16, 16), "Hu et al., ICML 2024")}
