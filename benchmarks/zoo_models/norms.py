"""Convolutional networks that are known for how they normalize.

TEBN: Duan et al., "Temporal Effective Batch Normalization in Spiking Neural Networks", NeurIPS 2022: one learned factor
per time step behind a batch norm over time and space.

OTTT: Xiao et al., "Online Training Through Time for Spiking Neural Networks", NeurIPS 2022: weights are standardized in
``forward``, and there is no batch norm; a single-step network runs in a loop over time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from .definition import Definition
from .layers import lif


class TEBN(nn.Module):
    def __init__(self, width, T):
        super().__init__()
        self.bn = nn.BatchNorm3d(width)
        self.p = nn.Parameter(torch.linspace(0.8, 1.2, T).view(T, 1, 1, 1, 1))

    def forward(self, x):
        y = x.transpose(1, 2).contiguous().transpose(0, 2)  # [B, C, T, H, W]
        y = self.bn(y.contiguous())
        y = y.permute(2, 0, 1, 3, 4).contiguous()  # [T, B, C, H, W]
        return y * self.p


class TEBNConv(nn.Module):
    def __init__(self, width_in, width_out, T):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(width_in, width_out, 3, 1, 1), TEBN(width_out, T), lif()

    def forward(self, x):
        T, B = x.shape[0], x.shape[1]
        x = self.conv(x.flatten(0, 1).contiguous())
        return self.act(self.norm(x.view(T, B, *x.shape[1:]).contiguous()))


class TEBNVGG(nn.Module):
    def __init__(self, T=4, dim=16, classes=10):
        super().__init__()
        self.T = T
        self.features = nn.ModuleList([TEBNConv(3, dim, T), TEBNConv(dim, 2 * dim, T), TEBNConv(2 * dim, 2 * dim, T)])
        self.pool, self.classifier = nn.AvgPool3d((1, 2, 2)), nn.Linear(2 * dim * 16, classes)

    def forward(self, x):
        x = torch.stack([x] * self.T, dim=0)
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i:
                x = self.pool(x.permute(1, 2, 0, 3, 4)).permute(2, 0, 1, 3, 4)
        return self.classifier(torch.flatten(x, 2)).mean(0)


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose weights have mean 0 and variance 1 / fan-in, times a gain per filter."""

    def __init__(self, width_in, width_out, kernel, stride=1, padding=0, bias=True):
        super().__init__(width_in, width_out, kernel, stride, padding, bias=bias)
        self.gain = nn.Parameter(torch.full((width_out, 1, 1, 1), 2.0))
        self.eps = 1e-4
        if bias:
            nn.init.uniform_(self.bias, 0.1, 0.6)

    def get_weight(self):
        fan_in = self.weight[0].numel()
        mean = torch.mean(self.weight, dim=[1, 2, 3], keepdim=True)
        variance = torch.var(self.weight, dim=[1, 2, 3], keepdim=True)
        return self.gain * (self.weight - mean) / ((variance * fan_in + self.eps) ** 0.5)

    def forward(self, x):
        return F.conv2d(x, self.get_weight(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scale(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x * self.scale


class OTTTVGG(nn.Module):
    def __init__(self, T=4, dim=16, classes=10):
        super().__init__()
        self.T = T
        layers = []
        for width_in, width_out in ((3, dim), (dim, 2 * dim), (2 * dim, 2 * dim)):
            layers += [
                StandardizedConv2d(width_in, width_out, 3, padding=1),
                neuron.LIFNode(
                    tau=2.0, decay_input=False, v_reset=None, surrogate_function=surrogate.Sigmoid(4.0), step_mode="s"
                ),
                Scale(2.74),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(2 * dim * 4, classes)

    def step(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))

    def forward(self, x):
        functional.reset_net(self)
        total = 0
        for _ in range(self.T):
            total = total + self.step(x)
        return total / self.T


ZOO = {
    "tebn-vgg": Definition(TEBNVGG, (3, 16, 16), "Duan et al., NeurIPS 2022"),
    "ottt-vgg": Definition(OTTTVGG, (3, 16, 16), "Xiao et al., NeurIPS 2022"),
}
