"""Removable channels: which channels can be removed without changing the output, by intervals and consumers.

Removing a channel means computing as if it were zero (the contract of Prune). That is exact where every consumer gets
nothing from the channel, or a constant that it can get in another way:

    projection    the channel is 0, or all weights that remaining outputs have for it are 0, or it is the same number
                  for every input and position, and is added to the bias (not where the layer pads with zeros)
    matmul, sum   the channel is 0, in either operand of a product

Everything else, such as neurons, batch norms and residual additions, keeps channels apart. A channel that only removed
channels use can be removed, too, so the search runs to its fixed point. The intervals themselves do not change, since
removed channels contribute nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch

from svitc.analysis.channel_consumers import ChannelConsumer, ProjectionConsumer, consumers_of, onto
from svitc.analysis.interval_neurons import Interval
from svitc.analysis.intervals import all_intervals, channels
from svitc.ir.axes import Axis
from svitc.ir.channel_groups import ChannelGroup, head_axes
from svitc.ir.channel_slicing import selection
from svitc.ir.program import Program

Masks = dict[str, np.ndarray]


class RemovableChannels:
    """The channels that can be removed from a program, and the reasons why the others stay.

    Attributes:
        masks: the channels of every group that stay, ``[heads, d]``.
        rounds: rounds until nothing more could be removed.
        spikes: axes and intervals of the neurons' outputs that are partly the same for every input.
    """

    def __init__(self, program: Program) -> None:
        self.program, self.bounds, self.rounds = program, all_intervals(program), 0
        self.consumers = list(consumers_of(program, self.bounds))
        spikes = ((channels(program.type_of(node)), self.bounds[node]) for node in program.neurons())
        self.spikes = [(of, bound) for of, bound in spikes if bound.constant.any()]
        self.masks: Masks = {g.name: np.ones((g.heads, g.axis.size), dtype=bool) for g in program.groups}
        while self._round():
            self.rounds += 1

    @property
    def changed_masks(self) -> Masks:
        """Return the masks of the groups from which something can be removed."""
        return {name: mask for name, mask in self.masks.items() if not mask.all()}

    def _round(self) -> bool:
        """Remove what can be removed now; earlier removals stand, since others were removed because of them."""
        if self.rounds:
            chosen, _ = selection(self.program, self.masks)
            for consumer in self.consumers:
                consumer.refresh(chosen)
        before = sum(int(mask.sum()) for mask in self.masks.values())
        heads = {key: self._heads(sharing) for key, sharing in head_axes(self.program.groups).items()}
        for group in self.program.groups:
            stays = heads.get(id(group.head_axis), np.ones(group.heads, dtype=bool))
            self.masks[group.name] = self._keep(group, stays)
        return sum(int(mask.sum()) for mask in self.masks.values()) < before

    def reading(self, axis: Axis | None) -> list[ChannelConsumer]:
        """Return the consumers that sum up an axis."""
        return [consumer for consumer in self.consumers if id(axis) in consumer.summed]

    def _heads(self, sharing: list[ChannelGroup]) -> np.ndarray:
        """Return which heads stay: a head is removed where all its channels can be, in every group with these heads."""
        axis = sharing[0].head_axis
        assert axis is not None
        present = np.asarray(self.masks[sharing[0].name].any(axis=1))
        if axis.frozen or axis.intact or any(group.frozen for group in sharing):
            return present
        free = np.ones(axis.size, dtype=bool)
        for consumer in self.reading(axis):
            free &= consumer.allows(axis).numpy()
        return _without(present, free, axis.size - 1, np.zeros(axis.size))

    def allowed(self, group: ChannelGroup) -> tuple[np.ndarray, np.ndarray]:
        """Return which elements can be removed, and how many layers would have to add them to their biases.

        Returns:
            two arrays, ``[heads, d]`` each.
        """
        free, fold = np.ones((group.heads, group.axis.size), dtype=bool), np.zeros((group.heads, group.axis.size))
        for consumer in self.reading(group.axis):
            free &= consumer.allows(group.head_axis, group.axis).numpy()
            if isinstance(consumer, ProjectionConsumer):
                fold += consumer.needs_fold(group.head_axis, group.axis).numpy()
        return free, fold

    def _keep(self, group: ChannelGroup, heads: np.ndarray) -> np.ndarray:
        """Return the mask of a group in this round, with as many channels in each remaining head."""
        mask: np.ndarray = self.masks[group.name] & heads[:, None]
        if group.frozen is not None or group.whole_heads is not None:
            return mask
        free, fold = self.allowed(group)
        if group.shared:  # heads that are mixed lose the same dimensions
            present, common = np.asarray(mask[heads].any(axis=0)), np.asarray(free[heads].all(axis=0))
            row = _without(present, common, group.axis.size - 1, fold.max(axis=0))
            return heads[:, None] & row
        count = min(int(free[heads].sum(axis=1).min()), group.axis.size - 1)
        for head in np.flatnonzero(heads):
            mask[head] = _without(mask[head], free[head], count, fold[head])
        return mask

    def taken_over(self, consumer: ProjectionConsumer) -> np.ndarray:
        """Return the indices of removed inputs of a layer whose value its bias must take over."""
        chosen, _ = selection(self.program, self.masks)
        removed = consumer.folds.numpy().copy()
        stays = chosen(tuple(consumer.leaves))
        removed[slice(None) if stays is None else stays] = False
        return np.flatnonzero(removed)

    def folded(self, group: ChannelGroup) -> int:
        """Return how many removed elements of a group are added to biases."""
        _, fold = self.allowed(group)
        return int((~self.masks[group.name] & (fold > 0)).sum())

    def refused(self, group: ChannelGroup, which: np.ndarray) -> dict[str, int]:
        """Return why elements stay: reason -> how many.

        Args:
            group: the group.
            which: the elements that are asked about, ``[heads, d]``.
        """
        left: np.ndarray = which & self.masks[group.name]
        if group.frozen or group.whole_heads:
            return {group.frozen or group.whole_heads or "": int(left.sum())} if left.any() else {}
        counts: Counter[str] = Counter()
        for consumer in self.reading(group.axis):
            for flags, why in consumer.reasons(group.head_axis, group.axis):
                hit = left & flags.numpy()
                counts[why] += int(hit.sum())
                left &= ~hit
        rest = "every head must keep as many" if not group.shared else "mixed heads must keep the same dimensions"
        counts["at least one channel must stay" if group.axis.size == 1 else rest] += int(left.sum())
        return {why: n for why, n in counts.items() if n}

    def firing(self, group: ChannelGroup, test: Callable[[Interval], torch.Tensor]) -> np.ndarray:
        """Return the elements of a group, ``[heads, d]``, at which the spikes of some neuron pass a test."""
        result = np.zeros((group.heads, group.axis.size), dtype=bool)
        for of, bound in self.spikes:
            if any(axis is group.axis for axis in of):
                flags = test(bound).reshape([axis.size for axis in of])
                result |= onto(flags, of, (group.head_axis, group.axis)).numpy()
        return result


def _without(mask: np.ndarray, free: np.ndarray, count: int, cost: np.ndarray) -> np.ndarray:
    """Return ``mask`` without ``count`` of the elements that are free: removed ones first, then the cheapest."""
    order = np.lexsort((np.arange(len(mask)), cost, mask, ~free))
    result = mask.copy()
    result[order[: min(count, int(free.sum()))]] = False
    return result
