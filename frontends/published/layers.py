"""Parts that the published families share: neurons, layers run over time, self-attention, MLP, RepConv.

Names of submodules are those of the published checkpoints and cannot be changed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import torch
from spikingjelly.activation_based import neuron
from torch import nn

Spike = Callable[[float], nn.Module]


def lif(threshold: float = 1.0) -> nn.Module:
    """Return the neuron of nearly every published model: LIF, tau 2, decayed input, hard reset to 0."""
    return neuron.LIFNode(tau=2.0, v_threshold=threshold, detach_reset=True, step_mode="m")


def plif(threshold: float = 1.0) -> nn.Module:
    """Return the same neuron with a learned time constant, ``w`` in the checkpoint."""
    return neuron.ParametricLIFNode(init_tau=2.0, v_threshold=threshold, detach_reset=True, step_mode="m")


def over_time(x: torch.Tensor, steps: int) -> torch.Tensor:
    """Repeat images ``[B, C, H, W]`` at every time step; return event frames ``[T, B, C, H, W]`` unchanged."""
    return x if x.ndim == 5 else x.unsqueeze(0).repeat(steps, 1, 1, 1, 1)


def at_each_step(x: torch.Tensor, layers: Iterable[nn.Module]) -> torch.Tensor:
    """Run stateless layers on ``[T, B, ...]``, with all time steps in one batch."""
    y = x.flatten(0, 1)
    for layer in layers:
        y = layer(y)
    return y.unflatten(0, x.shape[:2])


def check_heads(widths: Iterable[int], heads: int) -> None:
    """Raise ValueError where the number of heads does not divide a width."""
    for width in widths:
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")


def halve() -> nn.Module:
    """Return a max pooling that halves height and width."""
    return nn.MaxPool2d(3, stride=2, padding=1)


class Layers(nn.Module):
    """A module whose layers are direct children named as in the checkpoints: ``q_conv``, ``q_bn``, ``q_lif``.

    A stage (layer, batch norm and neuron) is named by a pattern with a gap for the kind of layer, such as ``"q_{}"`` or
    ``"proj_{}1"``.
    """

    def add(self, stage: str, layer: nn.Module, spike: Spike | None = lif) -> None:
        """Register a convolution or linear layer, its batch norm, and a neuron unless ``spike`` is None."""
        norm = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
        self.add_module(stage.format("linear" if isinstance(layer, nn.Linear) else "conv"), layer)
        self.add_module(stage.format("bn"), norm(len(layer.weight)))  # type: ignore[arg-type]
        if spike is not None:
            self.add_module(stage.format("lif"), spike(1.0))

    def fire(self, stage: str, x: torch.Tensor) -> torch.Tensor:
        """Run a stage's neuron on its input current, and return the spikes."""
        return getattr(self, stage.format("lif"))(x)

    def current(self, stage: str, x: torch.Tensor, *then: nn.Module) -> torch.Tensor:
        """Return the input current of a stage's neuron: layer, batch norm and the layers ``then``.

        Args:
            x: ``[T, B, C, ...]``; ``[T, B, N, C]`` for a linear layer.
        """
        norm = getattr(self, stage.format("bn"))
        linear = getattr(self, stage.format("linear"), None)
        if linear is None:
            return at_each_step(x, (getattr(self, stage.format("conv")), norm, *then))
        y = norm(linear(x.flatten(0, 1)).transpose(-1, -2)).transpose(-1, -2)
        return y.unflatten(0, x.shape[:2])

    def spikes(self, stage: str, x: torch.Tensor) -> torch.Tensor:
        """Run a stage: layer, batch norm and neuron."""
        return self.fire(stage, self.current(stage, x))


class SelfAttention(Layers):
    """Spiking self-attention of Spikformer and QKFormer: ``[T, B, C, N]``, or ``[T, B, N, C]`` if linear.

    Without softmax, ``(q k^T) v`` and ``q (k^T v)`` are the same integers in float32; this computes the
    latter, whatever the published code does.

    Args:
        layer: Type of the four projections, ``nn.Conv1d`` or ``nn.Linear``.
        scale: Factor of the product, a power of two, so that scaling is exact.
    """

    def __init__(self, dim: int, heads: int, layer: type[nn.Module], scale: float) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, scale
        self.linear = layer is nn.Linear
        for stage in ("q_{}", "k_{}", "v_{}"):
            self.add(stage, nn.Linear(dim, dim) if self.linear else nn.Conv1d(dim, dim, 1, bias=False))
        self.attn_lif = lif(0.5)
        self.add("proj_{}", nn.Linear(dim, dim) if self.linear else nn.Conv1d(dim, dim, 1))

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """Split the input into heads, ``[T, B, h, N, d]``."""
        if self.linear:
            return x.unflatten(3, (self.num_heads, -1)).transpose(2, 3)
        return x.unflatten(2, (self.num_heads, -1)).transpose(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.heads(self.spikes(stage, x)) for stage in ("q_{}", "k_{}", "v_{}"))
        y = (q @ (k.transpose(3, 4) @ v)) * self.scale
        y = y.transpose(2, 3).flatten(3) if self.linear else y.transpose(3, 4).flatten(2, 3)
        return self.project(self.attn_lif(y))

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Run the output projection."""
        return self.spikes("proj_{}", x)


class MLP(Layers):
    """Two projections with a neuron after each: ``[T, B, C, ...]``, or ``[T, B, N, C]`` if linear.

    Args:
        layer: ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Linear``.
        name: Name of the stages, ``fc`` or ``mlp``.
    """

    def __init__(self, dim: int, hidden: int, layer: type[nn.Module], name: str = "fc") -> None:
        super().__init__()
        self.stages = f"{name}1_{{}}", f"{name}2_{{}}"
        size = () if layer is nn.Linear else (1,)
        self.add(self.stages[0], layer(dim, hidden, *size))
        self.add(self.stages[1], layer(hidden, dim, *size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = self.spikes(stage, x)
        return x


class BorderNorm(nn.Sequential):
    """A border of zeros, then batch norm: ``[B, C, H, W] -> [B, C, H + 2p, W + 2p]``.

    The published code normalizes first and writes the norm's output for zero into the border. In inference the two
    agree to 6e-8; in training the statistics here include the border.
    """

    def __init__(self, channels: int, border: int) -> None:
        super().__init__(OrderedDict(pad=nn.ZeroPad2d(border), bn=nn.BatchNorm2d(channels)))


class RepConv(nn.Module):
    """1x1, border and norm, depthwise 3x3, 1x1, norm: linear end to end, and so one convolution in inference."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(dim, dim, 1, bias=False),
            BorderNorm(dim, border=1),
            nn.Sequential(
                nn.Conv2d(dim, dim, 3, groups=dim, bias=False),
                nn.Conv2d(dim, out, 1, bias=False),
                nn.BatchNorm2d(out),
            ),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)
