"""MS-ResNet: Hu et al., "Advancing Spiking Neural Networks Toward Deep Residual Learning", IEEE TNNLS 2024. A membrane
shortcut, neurons written by hand, convolutions that loop over time and write into zeros, and a batch norm over time and
space (tdBN: Zheng et al., "Going Deeper With Directly-Trained Larger Spiking Neural Networks", AAAI 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .definition import Definition
from .neurons import MembraneUpdate

time_window = 3


class StepConv2d(nn.Conv2d):
    """A convolution of each time step; the class of PyTorch with a ``forward`` of its own."""

    def forward(self, x):
        height = (x.size()[3] - self.kernel_size[0] + 2 * self.padding[0]) // self.stride[0] + 1
        width = (x.size()[4] - self.kernel_size[0] + 2 * self.padding[0]) // self.stride[0] + 1
        out = torch.zeros(time_window, x.size()[1], self.out_channels, height, width, device=x.device)
        for step in range(time_window):
            out[step] = F.conv2d(x[step], self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return out


class ThresholdNorm(nn.BatchNorm3d):
    """The batch norm of tdBN, whose scale starts at the threshold."""

    def reset_parameters(self):
        self.reset_running_stats()
        if self.affine:
            nn.init.constant_(self.weight, 0.5)
            nn.init.zeros_(self.bias)


class TimeNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.bn = ThresholdNorm(width)

    def forward(self, x):
        y = x.transpose(0, 2).contiguous().transpose(0, 1).contiguous()
        y = self.bn(y)
        return y.contiguous().transpose(0, 1).contiguous().transpose(0, 2)


class Block(nn.Module):
    def __init__(self, width_in, width_out, stride=1):
        super().__init__()
        self.residual_function = nn.Sequential(
            MembraneUpdate(),
            StepConv2d(width_in, width_out, kernel_size=3, stride=stride, padding=1, bias=False),
            TimeNorm(width_out),
            MembraneUpdate(),
            StepConv2d(width_out, width_out, kernel_size=3, padding=1, bias=False),
            TimeNorm(width_out),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width_out:
            self.shortcut = nn.Sequential(
                nn.AvgPool3d((1, 2, 2), stride=(1, 2, 2)),
                StepConv2d(width_in, width_out, kernel_size=1, bias=False),
                TimeNorm(width_out),
            )

    def forward(self, x):
        return self.residual_function(x) + self.shortcut(x)


class MSResNet(nn.Module):
    def __init__(self, dim=16, classes=10):
        super().__init__()
        self.conv1 = nn.Sequential(StepConv2d(3, dim, kernel_size=3, padding=1, bias=False), TimeNorm(dim))
        self.conv2_x = nn.Sequential(Block(dim, dim), Block(dim, dim))
        self.conv3_x = nn.Sequential(Block(dim, 2 * dim, 2), Block(2 * dim, 2 * dim))
        self.mem_update = MembraneUpdate()
        self.fc = nn.Linear(2 * dim, classes)

    def forward(self, x):
        frames = torch.zeros(time_window, x.size()[0], 3, x.size()[2], x.size()[3], device=x.device)
        for step in range(time_window):
            frames[step] = x
        output = self.conv3_x(self.conv2_x(self.conv1(frames)))
        output = self.mem_update(output)
        output = F.adaptive_avg_pool3d(output, (None, 1, 1))
        output = output.view(output.size()[0], output.size()[1], -1)
        return self.fc(output.sum(dim=0) / output.size()[0])


ZOO = {"ms-resnet": Definition(MSResNet, (3, 16, 16), "Hu et al., IEEE TNNLS 2024")}
