"""The reconstruction criterion: channels go in the order in which the layers behind them miss them least.

A layer that reads spikes S computes W S. Without the channels P, and with its other weights re-solved, it misses

    tr(W_P (C_PP - C_PK C_KK^-1 C_KP) W_P^T),     C = the covariance of S on calibration images,

which is known without running anything. Channels are eliminated one by one, each time the cheapest (Optimal Brain
Surgeon, Hassibi and Stork, 1993, with all weights of a channel as one block). A channel that never fires, or
always, has no covariance and goes first, at no cost at all; of two that always fire together one goes.

A dimension that a product of two activations sums up (query and key) has no weights behind it: what is missed is
the sum of the terms that are left out, from their inner products.
"""

from __future__ import annotations

import numpy as np

from svitc.ir.channel_groups import ChannelGroup
from svitc.passes.policies.criteria.base import Context, readers
from svitc.passes.policies.criteria.norms import firing

DAMP = 1e-3  # of the mean variance


class _ConsumerCost:
    """One layer's share in the cost of each channel, kept up to date as channels go."""

    def __init__(self, weight: np.ndarray, covariance: np.ndarray, columns: np.ndarray) -> None:
        """
        Args:
            weight: ``[outputs, D]``.
            covariance: ``[D, D]`` of the inputs.
            columns: ``[channels, k]``, the columns of each channel.
        """
        damp = DAMP * max(float(np.trace(covariance)) / len(covariance), 1e-12)
        self.inverse = np.linalg.inv(covariance + damp * np.eye(len(covariance)))
        self.weight, self.columns = weight.copy(), columns
        whole = float(((weight @ covariance) * weight).sum())
        self.scale = 1 / max(whole, 1e-12)  # as a share of what the layer puts out
        self.alive = np.ones(len(columns), dtype=bool)

    def costs(self) -> np.ndarray:
        """What losing each channel costs now, a share of the layer's output variance."""
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        blocks[~self.alive] = np.eye(self.columns.shape[1])
        parts = self.weight[:, self.columns].transpose(1, 2, 0)  # [channels, k, outputs]
        return np.asarray((parts * np.linalg.solve(blocks, parts)).sum((1, 2)) * self.scale)

    def remove(self, channel: int) -> None:
        at = self.columns[channel]
        solved = np.linalg.solve(self.inverse[np.ix_(at, at)], self.inverse[at])
        self.weight -= self.weight[:, at] @ solved
        self.inverse -= self.inverse[:, at] @ solved
        self.alive[channel] = False


class _Product:
    """The terms of one product's sum: ``[channels, channels]`` inner products."""

    def __init__(self, terms: np.ndarray) -> None:
        self.terms, self.left_out = terms, np.zeros(len(terms))
        self.scale = 1 / max(float(terms.sum()), 1e-12)

    def costs(self) -> np.ndarray:
        return np.asarray((np.diag(self.terms) + 2 * self.left_out) * self.scale)

    def remove(self, channel: int) -> None:
        self.left_out += self.terms[channel]


def reconstruction(about: Context, group: ChannelGroup) -> np.ndarray:
    """The later a channel would go, the higher its score; see the module."""
    calibration = about.measured("reconstruction")
    parts: list[_ConsumerCost | _Product] = []
    for member in readers(about, group):
        moments = calibration.moments.get(member.module)
        weight, dim = about.parameter(member)
        if moments is not None and [axis for axis in dim if axis not in (group.axis, group.head_axis)] == []:
            kernel = weight[0, 0].numel()
            order = [i for i, axis in enumerate(dim) if axis is group.head_axis]
            order += [i for i, axis in enumerate(dim) if axis is group.axis]
            index = np.arange(len(weight) * kernel).reshape(*[axis.size for axis in dim], kernel)
            columns = index.transpose(*order, -1).reshape(-1, kernel)
            if len(columns) == group.size:
                flat = weight.movedim(0, 1).flatten(1).double().numpy()
                parts.append(_ConsumerCost(flat, moments.covariance.numpy(), columns))
    parts += [_Product(block) for block in _terms(about, group)]
    if not parts:
        return firing(about, group)
    scores = np.full(group.size, np.inf)
    for step in range(group.size):
        costs = np.zeros(group.size)
        for part in parts:
            costs += part.costs()
        costs[np.isfinite(scores)] = np.inf
        gone = int(costs.argmin())
        scores[gone] = step
        for part in parts:
            part.remove(gone)
    return scores.reshape(group.heads, group.axis.size)


def _terms(about: Context, group: ChannelGroup) -> list[np.ndarray]:
    """For each product that sums the group up, inner products ``[channels, channels]``, zero between heads."""
    calibration = about.measured("reconstruction")
    found = []
    for node in about.program.graph.nodes:
        terms = calibration.terms.get(node.name)
        if terms is None or about.program.type_of(node.all_input_nodes[0])[-1] != (group.axis,):
            continue
        if len(terms) not in (1, group.heads):
            continue
        whole = np.zeros((group.heads, group.axis.size, group.heads, group.axis.size))
        for head in range(group.heads):
            whole[head, :, head] = terms[head if len(terms) > 1 else 0]
        found.append(whole.reshape(group.size, group.size))
    return found
