"""The reconstruction criterion: prune first the channels whose consumers can be reconstructed best without them.

A layer that consumes spikes S computes W S. Without the channels P, and with its weights for the kept channels K solved
again by least squares, its output has the squared error

    tr(W_P (C_PP - C_PK C_KK^-1 C_KP) W_P^T),     C = the covariance of S on calibration images,

which is known without running the network. What S does on average over time counts most (``Calibration.smoothed``).
Channels are eliminated one by one, each time the one with the least error (Optimal Brain Surgeon, Hassibi and Stork,
1993, with all weights of a channel as one block). A channel that never fires, or always fires, has no variance and is
eliminated first, without any error; so is one of two channels that always fire together.

A dimension that a product of two activations sums over (query and key) has no weights behind it. There the error is
that of the sum without the eliminated terms, which follows from the inner products of the terms.
"""

from __future__ import annotations

import numpy as np

from svitc.ir.channel_groups import ChannelGroup
from svitc.passes.policies.criteria.base import Context, consumers
from svitc.passes.policies.criteria.norms import firing

DAMPING = 1e-3  # added to the diagonal of the covariance, as a share of the mean variance


class _ConsumerCost:
    """The error of one consumer, if a further channel is eliminated.

    Args:
        weight: ``[outputs, D]``.
        covariance: covariance of the inputs, ``[D, D]``.
        columns: indices of each channel's columns, ``[channels, k]``.
    """

    def __init__(self, weight: np.ndarray, covariance: np.ndarray, columns: np.ndarray) -> None:
        damping = DAMPING * max(float(np.trace(covariance)) / len(covariance), 1e-12)
        self.inverse = np.linalg.inv(covariance + damping * np.eye(len(covariance)))
        self.weight, self.columns = weight.copy(), columns
        total = float(((weight @ covariance) * weight).sum())
        self.scale = 1 / max(total, 1e-12)  # errors are shares of the output's variance
        self.alive = np.ones(len(columns), dtype=bool)

    def costs(self) -> np.ndarray:
        """Return the error of eliminating each channel next, as a share of the variance of the layer's output."""
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        blocks[~self.alive] = np.eye(self.columns.shape[1])
        parts = self.weight[:, self.columns].transpose(1, 2, 0)  # [channels, k, outputs]
        return np.asarray((parts * np.linalg.solve(blocks, parts)).sum((1, 2)) * self.scale)

    def remove(self, channel: int) -> None:
        """Eliminate a channel, and solve the weights of the others again."""
        columns = self.columns[channel]
        solved = np.linalg.solve(self.inverse[np.ix_(columns, columns)], self.inverse[columns])
        self.weight -= self.weight[:, columns] @ solved
        self.inverse -= self.inverse[:, columns] @ solved
        self.alive[channel] = False


class _Product:
    """The error of one product's sum, if a further term is left out.

    Args:
        terms: inner products of the terms, ``[channels, channels]``.
    """

    def __init__(self, terms: np.ndarray) -> None:
        self.terms, self.left_out = terms, np.zeros(len(terms))
        self.scale = 1 / max(float(terms.sum()), 1e-12)

    def costs(self) -> np.ndarray:
        """Return the error of leaving out each term next, as a share of the sum's squared norm."""
        return np.asarray((np.diag(self.terms) + 2 * self.left_out) * self.scale)

    def remove(self, channel: int) -> None:
        """Leave out the term of a channel."""
        self.left_out += self.terms[channel]


def reconstruction(context: Context, group: ChannelGroup) -> np.ndarray:
    """Return the step at which each channel is eliminated; see the module."""
    calibration = context.measured("reconstruction")
    parts: list[_ConsumerCost | _Product] = []
    for member in consumers(group):
        moments = calibration.smoothed.get(member.module)
        weight, dim = context.parameter(member)
        if moments is not None and [axis for axis in dim if axis not in (group.axis, group.head_axis)] == []:
            kernel = weight[0, 0].numel()
            order = [i for i, axis in enumerate(dim) if axis is group.head_axis]
            order += [i for i, axis in enumerate(dim) if axis is group.axis]
            index = np.arange(len(weight) * kernel).reshape(*[axis.size for axis in dim], kernel)
            columns = index.transpose(*order, -1).reshape(-1, kernel)
            if len(columns) == group.size:
                flat = weight.movedim(0, 1).flatten(1).double().numpy()
                parts.append(_ConsumerCost(flat, moments.covariance.numpy(), columns))
    parts += [_Product(block) for block in _terms(context, group)]
    if not parts:
        return firing(context, group)
    scores = np.full(group.size, np.inf)
    for step in range(group.size):
        costs = np.zeros(group.size)
        for part in parts:
            costs += part.costs()
        costs[np.isfinite(scores)] = np.inf
        cheapest = int(costs.argmin())
        scores[cheapest] = step
        for part in parts:
            part.remove(cheapest)
    return scores.reshape(group.heads, group.axis.size)


def _terms(context: Context, group: ChannelGroup) -> list[np.ndarray]:
    """Return inner products ``[channels, channels]``, 0 between heads, for each product that sums over the group."""
    calibration = context.measured("reconstruction")
    blocks = []
    for node in context.program.graph.nodes:
        terms = calibration.terms.get(node.name)
        if terms is None or context.program.type_of(node.all_input_nodes[0])[-1] != (group.axis,):
            continue
        if len(terms) not in (1, group.heads):
            continue
        block = np.zeros((group.heads, group.axis.size, group.heads, group.axis.size))
        for head in range(group.heads):
            block[head, :, head] = terms[head if len(terms) > 1 else 0]
        blocks.append(block.reshape(group.size, group.size))
    return blocks
