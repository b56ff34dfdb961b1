"""Residual networks of spikes.

SEW-ResNet: Fang et al., "Deep Residual Learning in Spiking Neural Networks", NeurIPS 2021: spikes of a block and of its
shortcut are joined by ADD, AND or IAND.

Spiking-RepVGG: the structure of Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, with IF
neurons: a 3x3 and a 1x1 branch with their norms, and an identity, become one convolution after training.
"""

from __future__ import annotations

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from .definition import Definition


def spiking():
    return neuron.IFNode(detach_reset=True, surrogate_function=surrogate.ATan())


def joined(kind, x, y):
    if kind == "ADD":
        return x + y
    if kind == "AND":
        return x * y
    if kind == "IAND":
        return x * (1.0 - y)
    raise NotImplementedError(kind)


class SEWBlock(nn.Module):
    def __init__(self, width_in, width_out, stride, kind):
        super().__init__()
        self.kind = kind
        self.conv1 = nn.Sequential(
            layer.Conv2d(width_in, width_out, 3, stride, 1, bias=False), layer.BatchNorm2d(width_out), spiking()
        )
        self.conv2 = nn.Sequential(
            layer.Conv2d(width_out, width_out, 3, 1, 1, bias=False), layer.BatchNorm2d(width_out), spiking()
        )
        self.downsample = None
        if stride != 1 or width_in != width_out:
            self.downsample = nn.Sequential(
                layer.Conv2d(width_in, width_out, 1, stride, bias=False), layer.BatchNorm2d(width_out), spiking()
            )

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        return joined(self.kind, identity, self.conv2(self.conv1(x)))


class SEWResNet(nn.Module):
    def __init__(self, kind, T=4, dim=16, classes=10):
        super().__init__()
        self.T = T
        self.conv1, self.bn1 = layer.Conv2d(3, dim, 3, 1, 1, bias=False), layer.BatchNorm2d(dim)
        self.sn1, self.pool = spiking(), layer.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(SEWBlock(dim, dim, 1, kind), SEWBlock(dim, dim, 1, kind))
        self.layer2 = nn.Sequential(SEWBlock(dim, 2 * dim, 2, kind), SEWBlock(2 * dim, 2 * dim, 1, kind))
        self.avgpool, self.fc = layer.AdaptiveAvgPool2d((1, 1)), layer.Linear(2 * dim, classes)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = self.pool(self.sn1(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        x = torch.flatten(self.avgpool(x), 2)
        return self.fc(x).mean(0)


class RepVGGBlock(nn.Module):
    def __init__(self, width_in, width_out, stride):
        super().__init__()
        self.identity = stride == 1 and width_in == width_out
        self.conv3x3 = layer.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.bn3x3 = layer.BatchNorm2d(width_out)
        self.conv1x1 = layer.Conv2d(width_in, width_out, 1, stride, bias=False)
        self.bn = layer.BatchNorm2d(width_out)
        self.sn = spiking()

    def forward(self, x):
        out = self.bn(self.conv1x1(x) + self.bn3x3(self.conv3x3(x)))
        if self.identity:
            out = out + x
        return self.sn(out)


class SpikingRepVGG(nn.Module):
    def __init__(self, T=4, dim=16, classes=10):
        super().__init__()
        self.T = T
        widths = ((3, dim, 1), (dim, dim, 1), (dim, 2 * dim, 2), (2 * dim, 2 * dim, 1), (2 * dim, 4 * dim, 2))
        self.stages = nn.ModuleList(RepVGGBlock(*width) for width in widths)
        self.avgpool, self.flatten, self.fc = (
            layer.AdaptiveAvgPool2d(1),
            layer.Flatten(),
            layer.Linear(4 * dim, classes),
        )
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        for stage in self.stages:
            x = stage(x)
        return self.fc(self.flatten(self.avgpool(x))).mean(0)


PAPER = "Fang et al., NeurIPS 2021"
ZOO = {
    "sew-resnet-add": Definition(lambda: SEWResNet("ADD"), (3, 16, 16), PAPER),
    "sew-resnet-and": Definition(lambda: SEWResNet("AND"), (3, 16, 16), PAPER),
    "sew-resnet-iand": Definition(lambda: SEWResNet("IAND"), (3, 16, 16), PAPER),
    "spiking-repvgg": Definition(SpikingRepVGG, (3, 16, 16), "RepVGG with IF neurons; Ding et al., CVPR 2021"),
}
