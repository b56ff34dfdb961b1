"""Small networks that return several tensors, or one that is not class scores, each of whose neurons fires."""

from __future__ import annotations

from typing import NamedTuple

import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.outputs import tensors_of
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.passes.pipelines import canonical_passes

IMAGE = InputSpec((3, 16, 16))
T = 4


class Result(NamedTuple):
    boxes: torch.Tensor
    scores: torch.Tensor


class Conv(nn.Sequential):
    """A convolution over [T, N, C, H, W], a batch norm and a neuron."""

    def __init__(self, inputs: int, outputs: int, spikes: nn.Module, stride: int = 1) -> None:
        super().__init__(
            layer.Conv2d(inputs, outputs, 3, stride, 1, bias=False, step_mode="m"),
            layer.BatchNorm2d(outputs, step_mode="m"),
            spikes,
        )


class Backbone(nn.Module):
    """Three stages of spikes at falling resolution, and two sizes that no output freezes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 12, neuron.LIFNode(tau=2.0, decay_input=False, step_mode="m"))
        self.p1 = Conv(12, 8, neuron.IFNode(v_threshold=0.7, step_mode="m"))
        self.p2 = Conv(8, 12, neuron.LIFNode(tau=1.5, v_reset=None, step_mode="m"), 2)
        self.inner = Conv(12, 20, neuron.LIFNode(tau=2.0, decay_input=False, step_mode="m"))
        self.p3 = Conv(20, 16, neuron.IFNode(v_threshold=0.5, step_mode="m"), 2)
        self.head = nn.Linear(16, 5)

    def stages(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        p1 = self.p1(self.stem(x.unsqueeze(0).repeat(T, 1, 1, 1, 1)))
        p2 = self.p2(p1)
        return p1, p2, self.p3(self.inner(p2))

    def scores(self, p3: torch.Tensor) -> torch.Tensor:
        """[T, N, classes]"""
        return self.head(p3.flatten(3).mean(3))


class Single(Backbone):
    def forward(self, x):
        return self.scores(self.stages(x)[2]).mean(0)


class Tuple(Backbone):
    def forward(self, x):
        p3 = self.stages(x)[2]
        return self.scores(p3).mean(0), p3.mean((0, 3, 4))


class Maps(Backbone):
    """A dictionary: spikes as they are, currents, class scores; a key that is the input's name."""

    def forward(self, x):
        p1, p2, p3 = self.stages(x)
        return {"x": p1.mean(0), "spikes": p2, "head": self.scores(p3).mean(0), 7: (p2.mean(0), None, "a text")}


class OverTime(Backbone):
    """A list: the class scores of each step."""

    def forward(self, x):
        scores = self.scores(self.stages(x)[2])
        return [scores[t] for t in range(T)]


class Aliases(Backbone):
    def forward(self, x):
        _, p2, p3 = self.stages(x)
        logits = self.scores(p3).mean(0)
        return logits, {"again": logits, "spikes": [p2, p2]}, p2


class Named(Backbone):
    """A named tuple whose batch is not the first dimension of one tensor, and not the last of the other."""

    def forward(self, x):
        p3 = self.stages(x)[2]
        return Result(p3.mean(0).permute(1, 2, 3, 0), self.scores(p3).transpose(0, 1))


class Detection(Backbone):
    """Three maps of 4 box coordinates and 2 scores for each pixel, and of the deepest the class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(layer.Conv2d(width, 6, 1, step_mode="m") for width in (8, 12, 16))

    def forward(self, x):
        maps = [head(p).mean(0) for head, p in zip(self.heads, self.stages(x), strict=True)]
        return {"maps": maps, "boxes": maps[2].flatten(2).transpose(1, 2)}


class Dense(Backbone):
    """A segmentation: one map of 5 classes at the image's resolution, with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = Conv(8, 20, neuron.LIFNode(tau=2.0, decay_input=False, step_mode="m"))
        self.back = Conv(20, 8, neuron.IFNode(v_threshold=0.6, step_mode="m"))
        self.dense = layer.Conv2d(8, 5, 1, step_mode="m")

    def forward(self, x):
        p1 = self.p1(self.stem(x.unsqueeze(0).repeat(T, 1, 1, 1, 1)))
        return self.dense(self.back(self.middle(p1)) + p1).mean(0)


NETWORKS = {network.__name__: network for network in (Single, Tuple, Maps, OverTime, Aliases, Named, Detection, Dense)}


def build(name: str, seed: int = 0) -> nn.Module:
    """Return a network whose layers all fire on images of noise."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, layer.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.2, 0.6)
                module.weight.uniform_(0.8, 1.5)
                module.bias.uniform_(0.0, 0.6)
    return model.eval()


def program_of(model: nn.Module) -> Program:
    """Return a network's program, ready to be pruned."""
    program = capture(model, IMAGE)
    Pipeline(canonical_passes())(program)
    return program


def same(a: object, b: object) -> bool:
    """Return whether two results have the same structure and the same tensors; a named tuple counts as a tuple."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        kind = list if isinstance(a, list) else tuple
        return isinstance(b, kind) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def arrays(output: object) -> list:
    return [tensor.numpy() for tensor in tensors_of(output)]
