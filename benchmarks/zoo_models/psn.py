"""Networks of parallel spiking neurons: Fang et al., "Parallel Spiking Neurons with High Efficiency and Ability to
Learn Long-term Dependencies", NeurIPS 2023. All time steps at once: a product with a T x T matrix (``addmm``), with its
lower band (masked), or a convolution over time (sliding). The network is the paper's for CIFAR10, narrower."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from .definition import Definition

T = 4


class CIFAR10Net(nn.Module):
    def __init__(self, create_neuron, dim=16, classes=10):
        super().__init__()
        conv = []
        for stage in range(2):
            for i in range(2):
                conv.append(layer.Conv2d(3 if stage == 0 and i == 0 else dim, dim, 3, padding=1, bias=False))
                conv.append(layer.BatchNorm2d(dim))
                conv.append(create_neuron())
            conv.append(layer.AvgPool2d(2, 2))
        self.conv = nn.Sequential(*conv)
        self.fc = nn.Sequential(
            layer.Flatten(), layer.Linear(dim * 16, 4 * dim), create_neuron(), layer.Linear(4 * dim, classes)
        )
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = x.unsqueeze(0).repeat(T, 1, 1, 1, 1)
        return self.fc(self.conv(x)).mean(0)


def shifted(create):
    """Return a function that creates neurons whose thresholds are low enough to be reached with random weights."""

    def create_neuron():
        node = create()
        with torch.no_grad():
            node.bias.fill_(-0.2)
        return node

    return create_neuron


def parallel():
    return neuron.PSN(T=T)


def masked():
    return neuron.MaskedPSN(k=2, T=T, lambda_init=1.0, step_mode="m")


def sliding():
    return neuron.SlidingPSN(k=2, exp_init=True, step_mode="m")


PAPER = "Fang et al., NeurIPS 2023"
ZOO = {
    "psn": Definition(lambda: CIFAR10Net(shifted(parallel)), (3, 16, 16), PAPER),
    "masked-psn": Definition(lambda: CIFAR10Net(shifted(masked)), (3, 16, 16), PAPER),
    "sliding-psn": Definition(lambda: CIFAR10Net(shifted(sliding)), (3, 16, 16), PAPER),
}
