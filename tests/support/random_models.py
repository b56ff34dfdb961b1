"""Random spiking networks, built from everything that a model may be made of, and inputs in the ranges people use."""

from __future__ import annotations

import random

import torch
from spikingjelly.activation_based import functional
from torch import nn
from torch.nn import functional as F

from support.random_blocks import BLOCKS, Shape, convolution, each
from support.random_layers import FURTHER
from support.random_tokens import square

RANGES = ("unit", "normalized", "pixels", "events")
HEADS = ("mean", "last step", "before", "pooled", "summed")
FORMS = ("scores", "scores", "scores", "dictionary", "list")


class Network(nn.Module):
    """A stem, random blocks and a head; takes images ``[N, C, H, W]`` or event frames ``[T, N, C, H, W]``."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        r = random.Random(seed)
        self.range, self.form = r.choice(RANGES), FORMS[seed % len(FORMS)]
        self.events = self.range == "events"
        channels, size = (2 if self.events else 3), r.choice((6, 8))
        self.T, self.shape = r.choice((1, 2, 3, 4)), (channels, size, size)
        self.scale = nn.BatchNorm2d(channels) if self.range in ("pixels", "events") else nn.Identity()
        blocks = []
        stem, shape = convolution(r, Shape(self.T, channels, size, size))
        blocks.append(stem)
        for _ in range(r.randint(1, 4)):
            block, shape = r.choice((*BLOCKS, *FURTHER, square))(r, shape)
            blocks.append(block)
            if r.random() < 0.5:
                block, shape = convolution(r, shape)
                blocks.append(block)
        self.blocks = nn.Sequential(*blocks)
        self.read = r.choice(HEADS)
        self.head = nn.Linear(shape.C, 5)

    def forward(self, x):
        if not self.events:
            x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = self.blocks(each(x, self.scale))
        if self.form == "dictionary":
            return {"logits": self.scores(x), "features": x.mean(0)}
        return [self.scores(x), x[-1] * 0.5] if self.form == "list" else self.scores(x)

    def scores(self, x):
        """Return class scores."""
        if self.read == "pooled":
            x = each(x, lambda y: F.adaptive_avg_pool2d(y, 1)).flatten(2)
        else:
            x = x.flatten(3).mean(3)
        if self.read == "before":
            return self.head(x.mean(0))
        y = self.head(x)
        if self.read == "last step":
            return y[-1]
        return y.sum(0) / self.T if self.read == "summed" else y.mean(0)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input without batch."""
        return (self.T, *self.shape) if self.events else self.shape

    def images(self, count: int, seed: int) -> torch.Tensor:
        """Return inputs in the range that the network is made for."""
        g = torch.Generator().manual_seed(seed)
        shape = (self.T, count, *self.shape) if self.events else (count, *self.shape)
        if self.range == "unit":
            return torch.rand(shape, generator=g)
        if self.range == "normalized":
            return torch.randn(shape, generator=g)
        if self.range == "pixels":
            return torch.randint(0, 256, shape, generator=g).float()
        return torch.poisson(torch.full(shape, 0.7), generator=g)


def random_network(seed: int) -> Network:
    """Return a random network in eval mode, whose batch norms fit its inputs and whose neurons fire."""
    torch.manual_seed(seed)
    net = Network(seed)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            module.momentum = None  # the average of all batches
            with torch.no_grad():
                module.weight.uniform_(0.8, 1.4)
                module.bias.uniform_(0.1, 0.6)
    net.train()
    with torch.no_grad():
        for seed_of_batch in (1, 2):
            functional.reset_net(net)
            net(net.images(8, seed_of_batch))
    functional.reset_net(net)
    return net.eval()
