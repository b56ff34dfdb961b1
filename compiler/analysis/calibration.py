"""Calibration: statistics of the original program on a few hundred images, for the pruning criteria and the refit.

One pass over the images collects, for every projection, the second moments of its input (for spikes: how often two
inputs fire together), for every product of two activations, the moments of its terms, and for every neuron, how often
each channel fires. Moments of inputs averaged over time, and gradients, are computed only on demand.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass

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
WIDEST = 6_000  # largest number of inputs of a layer, kernel included, whose moments fit in memory
STEP_SHARE = 0.1  # of single time steps in smoothed moments; the rest is of averages over time


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

    def mixed(self, other: Moments, share: float) -> Moments:
        """Return the moments of a mixture: a share of the rows of ``other``, and the rest of these."""
        parts = ((self, 1 - share), (other, share))
        total = sum(weight * moments.mean for moments, weight in parts)
        products = sum(weight * (moments.products / moments.rows) for moments, weight in parts)
        return Moments(1, torch.as_tensor(total), torch.as_tensor(products))


class Calibration:
    """Statistics of a program on images, in float64.

    Args:
        program: the original, at a stage at which it can be trained.
        inputs: images in its input layout.
        labels: ``[N]``; only gradients need them. In place of -1 they take the class that the program chooses.
        seed: seeds the choice of positions.

    Attributes:
        moments: layer -> moments of its input.
        terms: name of a matrix product -> ``[heads, d, d]``: inner products of the terms that the contracted axis sums
            up. Leaving out a set of terms costs the sum over the block of that set.
        rates: neuron -> spikes in a time step, summed over the images, over the channel leaf axes of its value.
    """

    def __init__(self, program: Program, inputs: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> None:
        self.program, self.inputs, self.labels, self.seed = program, inputs, labels, seed
        self.moments: dict[str, Moments] = {}
        self.terms: dict[str, np.ndarray] = {}
        self.rates: dict[str, torch.Tensor] = {}
        self._taylor: dict[str, torch.Tensor] | None = None
        self.images = inputs.shape[program.input.batch_dim]
        generator = torch.Generator().manual_seed(seed)
        self._observe(_Observer(self, generator))

    def _observe(self, observer: _Observer | _AverageObserver) -> None:
        """Run the program on all images, batch by batch."""
        self.program.module.eval()
        with torch.no_grad():
            for x, _ in self._batches():
                self.program.reset()
                observer.share = x.shape[self.program.input.batch_dim] / self.images
                observer.run(x)
        self.program.reset()

    @functools.cached_property
    def smoothed(self) -> dict[str, Moments]:
        """Layer -> moments of its input of which mostly the average over time counts, a little also single steps.

        A neuron adds up its current over time. Where the image stays the same, what differs between the steps averages
        out, and mostly an error of the average remains. Event frames differ, and count step by step. The program must
        not have changed.
        """
        if self.program.input.events:
            return self.moments
        observer = _AverageObserver(self, torch.Generator().manual_seed(self.seed))
        self._observe(observer)
        averages = observer.moments
        return {
            name: averages[name].mixed(moments, STEP_SHARE) if name in averages else moments
            for name, moments in self.moments.items()
        }

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

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.op == "call_module" and ops.is_neuron(self.fetch_attr(str(n.target))) and value.requires_grad:
            self.values[n] = value
        return value


class _Observer(fx.Interpreter):
    """Interpreter that adds the moments and rates of one batch to a calibration.

    Attributes:
        share: of all images that are in the batch.
    """

    def __init__(self, calibration: Calibration, generator: torch.Generator) -> None:
        super().__init__(calibration.program.module)
        self.calibration, self.generator, self.share = calibration, generator, 1.0

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        calibration = self.calibration
        if n.op == "call_module":
            name, module = str(n.target), self.fetch_attr(str(n.target))
            if ops.is_neuron(module):
                calibration.rates[name] = calibration.rates.get(name, 0) + _sum(
                    value.double(), calibration.program.type_of(n), means=True
                )
            elif _observed(module):
                rows = _rows(module, self.env[n.all_input_nodes[0]], value, self.share, self.generator)
                _add(calibration.moments, name, rows)
        elif n.target in (torch.matmul, operator.matmul):
            self._product(n)
        return value

    def _product(self, n: fx.Node) -> None:
        """Add the inner products of the terms of a matrix product."""
        left, right = n.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        dims = self.calibration.program.type_of(left)
        a, b = self.env[left], self.env[right]
        both = ((a.mT @ a) * (b @ b.mT)).double()
        keep = [i for i, dim in enumerate(dims[:-2]) if any(axis.kind == Kind.CHANNEL for axis in dim)]
        summed = both.sum([i for i in range(both.ndim - 2) if i not in keep])
        self.calibration.terms[n.name] = (
            self.calibration.terms.get(n.name, 0) + summed.reshape(-1, *both.shape[-2:]).numpy()
        )


class _AverageObserver(fx.Interpreter):
    """Interpreter that adds up the moments of inputs averaged over time, of one batch.

    Attributes:
        moments: layer -> moments of the average of its input; without layers that read several steps at once.
        share: of all images that are in the batch.
    """

    def __init__(self, calibration: Calibration, generator: torch.Generator) -> None:
        super().__init__(calibration.program.module)
        self.program, self.generator, self.share = calibration.program, generator, 1.0
        self.moments: dict[str, Moments] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, nn.Module) and _observed(module):
            source = n.all_input_nodes[0]
            dims = self.program.type_of(source)
            consumed = dims[-1:] if isinstance(module, nn.Linear) else dims[1:]
            if not any(axis.kind == Kind.TIME for dim in consumed for axis in dim):
                steps = math.prod(axis.size for dim in dims for axis in dim if axis.kind == Kind.TIME)
                x, y = _time_sum(self.env[source], dims), _time_sum(value, self.program.type_of(n))
                _add(self.moments, str(n.target), _rows(module, x, y, self.share, self.generator), steps)
        return value


def _observed(module: nn.Module) -> bool:
    """Return whether moments of a layer's input are collected."""
    return im2col.solvable(module) and module.weight[0].numel() <= WIDEST  # type: ignore[index, operator]


def _rows(
    module: nn.Module, x: torch.Tensor, y: torch.Tensor, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Return the inputs of a layer at some positions, ``[rows, D]``: a share of as many as its moments take.

    Args:
        module: the layer.
        x: its input.
        y: its output, of which only the shape counts.
        share: of the images that are in the batch.
        generator: the source of randomness.
    """
    limit = int(share * max(ROWS, ROWS_PER_INPUT * module.weight[0].numel()))  # type: ignore[index, operator]
    return im2col.rows(module, x, y, limit, generator)[0]


def _add(moments: dict[str, Moments], name: str, rows: torch.Tensor, steps: int = 1) -> None:
    """Add rows to the moments of a layer; of averages, as sums over ``steps``, since sums of spikes are exact."""
    previous = moments.get(name, Moments(0, 0, 0))  # type: ignore[arg-type]
    moments[name] = Moments(
        previous.rows + len(rows),
        previous.total + rows.sum(0).double() / steps,
        previous.products + (rows.T @ rows).double() / steps**2,
    )


def _time_sum(value: torch.Tensor, dims: Dims) -> torch.Tensor:
    """Return the sum of a value over its time axes, whose sizes become 1.

    Args:
        value: of the shape that ``dims`` says.
        dims: its type.
    """
    leaves = [axis for dim in dims for axis in dim]
    times = [i for i, axis in enumerate(leaves) if axis.kind == Kind.TIME]
    if not times:
        return value
    split = value.reshape([-1 if axis.kind == Kind.BATCH else axis.size for axis in leaves])
    sizes = [
        [1 if axis.kind == Kind.TIME else -1 if axis.kind == Kind.BATCH else axis.size for axis in dim] for dim in dims
    ]
    return split.sum(times).reshape([-1 if -1 in dim else math.prod(dim) for dim in sizes])


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
