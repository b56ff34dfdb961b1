"""Calibration: what the original does on a few hundred images, as the criteria and the refit need it.

One pass over the images collects, for every projection, the second moments of what it reads (with spikes: how
often two inputs fire together), for every product of two activations, the moments of its terms, and for every
neuron, how often each channel fires. Gradients are taken only when they are asked for.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from svitc.analysis import im2col
from svitc.data.inputs import time_average
from svitc.ir import ops
from svitc.ir.axes import Dims, Kind
from svitc.ir.channel_groups import ChannelGroup
from svitc.ir.program import Program

BATCH = 32
ROWS = 8_192  # positions that one layer's moments are taken over, at least,
ROWS_EACH = 16  # and for each of its inputs
WIDEST = 6_000  # inputs of a layer, kernel included, beyond which its moments would not fit


@dataclass
class Moments:
    """Of what a projection reads, columns ordered as ``weight.flatten(1)``.

    Attributes:
        rows: positions seen.
        total: sum over them ``[D]``.
        products: sum of outer products ``[D, D]``.
    """

    rows: int
    total: torch.Tensor
    products: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        return self.total / self.rows

    @property
    def covariance(self) -> torch.Tensor:
        return self.products / self.rows - torch.outer(self.mean, self.mean)


class Calibration:
    """Statistics of a program on labelled images, in float64.

    Args:
        program: the original, at a stage that trains.
        inputs: images in its input layout.
        labels: ``[N]``; only gradients need them.

    Attributes:
        moments: layer -> moments of what it reads.
        terms: name of a matrix product -> ``[heads, d, d]``: inner products of the terms that the contracted
            axis sums up, so that leaving out a set of them costs the sum over the set's square.
        rates: neuron -> mean spikes a step, in the layout of its value's leaf axes that are channels.
    """

    def __init__(self, program: Program, inputs: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> None:
        self.program, self.inputs, self.labels, self.seed = program, inputs, labels, seed
        self.moments: dict[str, Moments] = {}
        self.terms: dict[str, np.ndarray] = {}
        self.rates: dict[str, torch.Tensor] = {}
        self._taylor: dict[str, torch.Tensor] | None = None
        self.images = inputs.shape[program.input.batch_dim]
        generator = torch.Generator().manual_seed(seed)
        program.module.eval()
        with torch.no_grad():
            for x, _ in self._batches():
                program.reset()
                _Observer(self, x.shape[program.input.batch_dim] / self.images, generator).run(x)
        program.reset()

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batch = self.program.input.at_once(BATCH)
        return zip(self.inputs.split(batch, self.program.input.batch_dim), self.labels.split(batch), strict=True)

    def firing(self, group: ChannelGroup) -> np.ndarray | None:
        """Spikes a step of each channel ``[heads, d]``, summed over the group's neurons; None if it has none."""
        return self._spread(group, self.rates, 1 / self.images)

    def taylor(self, group: ChannelGroup) -> np.ndarray | None:
        """Size of the loss' first-order change if a channel fell silent ``[heads, d]`` (Molchanov et al., 2019)."""
        if self._taylor is None:
            self._taylor = self._gradients()
        return self._spread(group, self._taylor, 1 / self.images)

    def _spread(self, group: ChannelGroup, values: dict[str, torch.Tensor], scale: float) -> np.ndarray | None:
        total = None
        for node in self.program.neurons():
            dims = self.program.type_of(node)
            if str(node.target) in values and any(group.axis in dim for dim in dims):
                part = over_channels(values[str(node.target)], channel_leaves(dims), group)
                total = part if total is None else total + part
        return None if total is None else total * scale

    def _gradients(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for x, labels in self._batches():
            self.program.reset()
            keeper = _Keeper(self.program.module)
            with torch.enable_grad():
                logits = keeper.run(x)
                loss = F.cross_entropy(time_average(logits), labels, reduction="sum")
                values = list(keeper.values.items())
                gradients = torch.autograd.grad(loss, [v for _, v in values], allow_unused=True) if values else ()
            for (node, value), gradient in zip(values, gradients, strict=True):
                if gradient is not None:
                    dims = self.program.type_of(node)
                    each = (value * gradient).detach().double()
                    found[str(node.target)] = found.get(str(node.target), 0) + _sum(each, dims, each_image=True)
        self.program.reset()
        return found


class _Keeper(fx.Interpreter):
    """Keeps every neuron's spikes with their history."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_module" and ops.is_neuron(self.fetch_attr(str(n.target))) and value.requires_grad:
            self.values[n] = value
        return value


class _Observer(fx.Interpreter):
    def __init__(self, calibration: Calibration, share: float, generator: torch.Generator) -> None:
        super().__init__(calibration.program.module)
        self.to, self.share, self.generator = calibration, share, generator

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        to = self.to
        if n.op == "call_module":
            name, module = str(n.target), self.fetch_attr(str(n.target))
            if ops.is_neuron(module):
                to.rates[name] = to.rates.get(name, 0) + _sum(value.double(), to.program.type_of(n), means=True)
            elif im2col.solvable(module) and module.weight[0].numel() <= WIDEST:
                most = int(self.share * max(ROWS, ROWS_EACH * module.weight[0].numel()))
                s, _ = im2col.rows(module, self.env[n.all_input_nodes[0]], value, most, self.generator)
                old = to.moments.get(name, Moments(0, 0, 0))  # type: ignore[arg-type]
                to.moments[name] = Moments(
                    old.rows + len(s), old.total + s.sum(0).double(), old.products + (s.T @ s).double()
                )
        elif n.target in (torch.matmul, operator.matmul):
            self._product(n)
        return value

    def _product(self, n: fx.Node) -> None:
        left, right = n.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        dims = self.to.program.type_of(left)
        a, b = self.env[left], self.env[right]
        both = ((a.mT @ a) * (b @ b.mT)).double()
        keep = [i for i, dim in enumerate(dims[:-2]) if any(axis.kind == Kind.CHANNEL for axis in dim)]
        summed = both.sum([i for i in range(both.ndim - 2) if i not in keep])
        self.to.terms[n.name] = self.to.terms.get(n.name, 0) + summed.reshape(-1, *both.shape[-2:]).numpy()


def channel_leaves(dims: Dims) -> tuple:
    return tuple(axis for dim in dims for axis in dim if axis.kind == Kind.CHANNEL)


def _sum(value: torch.Tensor, dims: Dims, means: bool = False, each_image: bool = False) -> torch.Tensor:
    """A value's channel leaves, all else summed up; positions averaged with ``means``.

    With ``each_image`` it is the sum of each image's absolute value.
    """
    leaves = [axis for dim in dims for axis in dim]
    split = value.reshape([-1 if axis.kind == Kind.BATCH else axis.size for axis in leaves])
    others = [i for i, axis in enumerate(leaves) if axis.kind != Kind.CHANNEL]
    batch = next(i for i, axis in enumerate(leaves) if axis.kind == Kind.BATCH)
    if each_image:
        inner = split.sum([i for i in others if i != batch], keepdim=True) if len(others) > 1 else split
        return inner.abs().sum(others)
    total = split.sum(others)
    return total * (split.shape[batch] * total.numel() / split.numel()) if means else total


def over_channels(values: torch.Tensor, leaves: tuple, group: ChannelGroup) -> np.ndarray:
    """Values over channel leaves as ``[heads, d]`` of a group, other leaves summed up."""
    grid = values.double().numpy()
    order = [i for i, axis in enumerate(leaves) if axis is group.head_axis]
    order += [i for i, axis in enumerate(leaves) if axis is group.axis]
    rest = [i for i in range(len(leaves)) if i not in order]
    moved = grid.transpose(*order, *rest).reshape(*(leaves[i].size for i in order), -1).sum(-1)
    return np.array(np.broadcast_to(moved.reshape(-1, group.axis.size), (group.heads, group.axis.size)))
