"""Calibration: statistics of the original program on a few hundred images, for the pruning criteria and the refit.

One pass over the images collects, for every projection, the second moments of its input smoothed over time, for every
product of two activations, the moments of its terms, and for every neuron, how often each channel fires. Another one
collects the second moments of the inputs at each time step (for spikes: how often two inputs fire together). Gradients
are a third. Each pass is made on demand.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from svitc.analysis import im2col
from svitc.errors import UsageError
from svitc.ir import ops
from svitc.ir.axes import Axis, Dims, Kind
from svitc.ir.channel_groups import ChannelGroup
from svitc.ir.outputs import as_tuple, class_scores
from svitc.ir.program import Program

BATCH_IMAGES = 32
ROWS = 8_192  # least number of positions for the moments of one layer
ROWS_PER_INPUT = 16  # least number of positions for each input of the layer
SMOOTHING = 4  # divides the deviations of inputs from their average over time
WIDEST = 6_000  # largest number of inputs of a layer, kernel included, whose moments fit in memory


@dataclass
class Moments:
    """First and second moments of a projection's input, columns ordered as in ``weight.flatten(1)``.

    Attributes:
        rows: number of positions.
        total: sum over the positions, ``[D]``.
        products: sum of the outer products, ``[D, D]``.
    """

    rows: int
    total: torch.Tensor
    products: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """Return the mean of each input, ``[D]``."""
        return self.total / self.rows

    @property
    def covariance(self) -> torch.Tensor:
        """Return the covariance of the inputs, ``[D, D]``."""
        return self.products / self.rows - torch.outer(self.mean, self.mean)


class Calibration:
    """Statistics of a program on images, in float64, each computed on first use; the program must not change before.

    Args:
        program: the original, at a stage at which it can be trained.
        inputs: images in its input layout.
        labels: ``[N]``; only gradients need them. In place of -1 they take the class that the program chooses.
        seed: seeds the choice of positions.
    """

    def __init__(self, program: Program, inputs: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> None:
        self.program, self.inputs, self.labels, self.seed = program, inputs, labels, seed
        self._taylor: dict[str, torch.Tensor] | None = None
        self.images = inputs.shape[program.input.batch_dim]

    @functools.cached_property
    def moments(self) -> dict[str, Moments]:
        """Layer -> moments of its input at single time steps."""
        return self._observed(_StepObserver).moments

    @property
    def smoothed(self) -> dict[str, Moments]:
        """Layer -> moments of its input smoothed over time; of event frames, which differ, at single time steps.

        A neuron adds up its current over time. Where the image stays the same, what differs between the steps averages
        out in part, and an error of the average weighs more.
        """
        return self.moments if self.program.input.events else self._pruning.moments

    @property
    def terms(self) -> dict[str, np.ndarray]:
        """Name of a matrix product -> ``[heads, d, d]``: inner products of the terms that the contracted axis sums up.

        Leaving out a set of terms costs the sum over the block of that set.
        """
        return self._pruning.terms

    @property
    def rates(self) -> dict[str, torch.Tensor]:
        """Neuron -> spikes in a time step, summed over the images, over the channel leaf axes of its value."""
        return self._pruning.rates

    @functools.cached_property
    def _pruning(self) -> _PruningObserver:
        return self._observed(_PruningObserver)

    def _observed(self, kind: type[ObserverT]) -> ObserverT:
        """Return an observer that has seen all images."""
        self.program.module.eval()
        observer = kind(self.program, self.images, self.seed)
        with torch.no_grad():
            for x, _ in self._batches():
                self.program.reset()
                observer.observe(x)
        self.program.reset()
        return observer

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batch = self.program.input.at_once(BATCH_IMAGES)
        return zip(self.inputs.split(batch, self.program.input.batch_dim), self.labels.split(batch), strict=True)

    def firing(self, group: ChannelGroup) -> np.ndarray | None:
        """Return the mean spikes in a time step of each channel, summed over the group's neurons.

        Returns:
            ``[heads, d]``, or None where the group has no neuron.
        """
        return self._spread(group, self.rates, 1 / self.images)

    def taylor(self, group: ChannelGroup) -> np.ndarray | None:
        """Return the first-order estimate of how much the loss changes if a channel is removed.

        Returns:
            ``[heads, d]``, or None where the group has no neuron.

        Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019.
        """
        if self._taylor is None:
            self._taylor = self._gradients()
        return self._spread(group, self._taylor, 1 / self.images)

    def _spread(self, group: ChannelGroup, values: dict[str, torch.Tensor], scale: float) -> np.ndarray | None:
        """Sum the values of the neurons of a group over the group's channels, ``[heads, d]``, times ``scale``."""
        total = None
        for node in self.program.neurons():
            dims = self.program.type_of(node)
            if str(node.target) in values and any(group.axis in dim for dim in dims):
                part = over_channels(values[str(node.target)], channel_leaves(dims), group)
                total = part if total is None else total + part
        return None if total is None else total * scale

    def _gradients(self) -> dict[str, torch.Tensor]:
        """Return, for each neuron, the absolute value of spikes times gradient, summed over the images."""
        taylor: dict[str, torch.Tensor] = {}
        scores = class_scores(self.program.graph, self.program.info)
        if scores is None:
            raise UsageError(
                "the criterion taylor needs a loss, and the model has no single output of class scores",
                hint="Choose another --criterion.",
            )
        for x, labels in self._batches():
            self.program.reset()
            recorder = _SpikeRecorder(self.program.module)
            with torch.enable_grad():
                logits = scores.of(as_tuple(recorder.run(x)))
                targets = torch.where(labels < 0, logits.argmax(1), labels)
                loss = F.cross_entropy(logits, targets, reduction="sum")
                values = list(recorder.values.items())
                gradients = torch.autograd.grad(loss, [v for _, v in values], allow_unused=True) if values else ()
            for (node, value), gradient in zip(values, gradients, strict=True):
                if gradient is not None:
                    dims = self.program.type_of(node)
                    product = (value * gradient).detach().double()
                    taylor[str(node.target)] = taylor.get(str(node.target), 0) + _sum(product, dims, each_image=True)
        self.program.reset()
        return taylor


class _SpikeRecorder(fx.Interpreter):
    """Interpreter that keeps every neuron's spikes together with their autograd history."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_module" and ops.is_neuron(self.fetch_attr(str(n.target))) and value.requires_grad:
            self.values[n] = value
        return value


class _StepObserver(fx.Interpreter):
    """Interpreter that adds up the moments of the layers' inputs at single time steps.

    Args:
        program: the program.
        images: number of images in all batches.
        seed: seeds the choice of positions.

    Attributes:
        moments: layer -> moments of its input.
    """

    def __init__(self, program: Program, images: int, seed: int) -> None:
        super().__init__(program.module)
        self.program, self.images = program, images
        self.generator = torch.Generator().manual_seed(seed)
        self.moments: dict[str, Moments] = {}
        self.share = 1.0  # of the images that are in the batch

    def observe(self, x: torch.Tensor) -> None:
        """Add one batch."""
        self.share = x.shape[self.program.input.batch_dim] / self.images
        self.run(x)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_module":
            module: Any = self.fetch_attr(str(n.target))
            if im2col.solvable(module) and module.weight[0].numel() <= WIDEST:
                self._add(n, module, self.env[n.all_input_nodes[0]], value)
        return value

    def _add(self, n: fx.Node, module: Any, x: torch.Tensor, y: torch.Tensor, scale: int = 1) -> None:
        """Add the moments of a layer's input.

        Args:
            n: the layer.
            module: its module.
            x: its input times ``scale``, as sums of whole numbers are exact.
            y: its output.
            scale: factor of ``x``.
        """
        name = str(n.target)
        max_rows = int(self.share * max(ROWS, ROWS_PER_INPUT * module.weight[0].numel()))
        rows, _ = im2col.rows(module, x, y, max_rows, self.generator)
        previous = self.moments.get(name, Moments(0, 0, 0))  # type: ignore[arg-type]
        self.moments[name] = Moments(
            previous.rows + len(rows),
            previous.total + rows.sum(0).double() / scale,
            previous.products + (rows.T @ rows).double() / scale**2,
        )


class _PruningObserver(_StepObserver):
    """Interpreter that adds up what pruning needs: moments of smoothed inputs, rates, and terms of products.

    Args:
        program: the program.
        images: number of images in all batches.
        seed: seeds the choice of positions.

    Attributes:
        terms: see ``Calibration``.
        rates: see ``Calibration``.
    """

    def __init__(self, program: Program, images: int, seed: int) -> None:
        super().__init__(program, images, seed)
        self.terms: dict[str, np.ndarray] = {}
        self.rates: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_module" and ops.is_neuron(self.fetch_attr(str(n.target))):
            name = str(n.target)
            self.rates[name] = self.rates.get(name, 0) + _sum(value.double(), self.program.type_of(n), means=True)
        elif n.target in (torch.matmul, operator.matmul):
            self._product(n)
        return value

    def _add(self, n: fx.Node, module: Any, x: torch.Tensor, y: torch.Tensor, scale: int = 1) -> None:
        if self.program.input.events:
            return
        dims = self.program.type_of(n.all_input_nodes[0])
        consumed = dims[-1:] if isinstance(module, nn.Linear) else dims[1:]
        if not any(axis.kind == Kind.TIME for dim in consumed for axis in dim):  # a layer over time is left as it is
            x, scale = _smoothed(x, dims)
        super()._add(n, module, x, y, scale)

    def _product(self, n: fx.Node) -> None:
        """Add the inner products of the terms of a matrix product."""
        left, right = n.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        dims = self.program.type_of(left)
        a, b = self.env[left], self.env[right]
        both = ((a.mT @ a) * (b @ b.mT)).double()
        keep = [i for i, dim in enumerate(dims[:-2]) if any(axis.kind == Kind.CHANNEL for axis in dim)]
        summed = both.sum([i for i in range(both.ndim - 2) if i not in keep])
        self.terms[n.name] = self.terms.get(n.name, 0) + summed.reshape(-1, *both.shape[-2:]).numpy()


ObserverT = TypeVar("ObserverT", bound=_StepObserver)


def _smoothed(value: torch.Tensor, dims: Dims) -> tuple[torch.Tensor, int]:
    """Return a value whose deviations from its average over time are divided by ``SMOOTHING``, times a whole number.

    Args:
        value: of the shape that ``dims`` says.
        dims: its type.

    Returns:
        The smoothed value times a factor, so that it is whole where ``value`` is; and the factor.
    """
    leaves = [axis for dim in dims for axis in dim]
    times = [i for i, axis in enumerate(leaves) if axis.kind == Kind.TIME]
    steps = math.prod(leaves[i].size for i in times)
    if steps == 1:
        return value, 1
    split = value.reshape([-1 if axis.kind == Kind.BATCH else axis.size for axis in leaves])
    smoothed = (SMOOTHING - 1) * split.sum(times, keepdim=True) + steps * split
    return smoothed.reshape(value.shape), SMOOTHING * steps


def channel_leaves(dims: Dims) -> tuple[Axis, ...]:
    """Return the channel axes of a type, in order."""
    return tuple(axis for dim in dims for axis in dim if axis.kind == Kind.CHANNEL)


def _sum(value: torch.Tensor, dims: Dims, means: bool = False, each_image: bool = False) -> torch.Tensor:
    """Sum a value over all axes other than its channel leaves.

    Args:
        value: of the shape that ``dims`` says.
        dims: its type.
        means: take the mean over the positions instead of their sum.
        each_image: sum the absolute values of the sums of each image.
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


def over_channels(values: torch.Tensor, leaves: tuple[Axis, ...], group: ChannelGroup) -> np.ndarray:
    """Return values over channel leaves as ``[heads, d]`` of a group, summed over the other leaves."""
    array = values.double().numpy()
    order = [i for i, axis in enumerate(leaves) if axis is group.head_axis]
    order += [i for i, axis in enumerate(leaves) if axis is group.axis]
    others = [i for i in range(len(leaves)) if i not in order]
    moved = array.transpose(*order, *others).reshape(*(leaves[i].size for i in order), -1).sum(-1)
    return np.array(np.broadcast_to(moved.reshape(-1, group.axis.size), (group.heads, group.axis.size)))
