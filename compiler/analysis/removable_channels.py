"""Silence: which channels of a program may go for nothing, by the bounds of every value and by who reads them.

A channel that is removed is one that is computed as zero (the contract of Prune). That is exact where each place at
which channels are summed up gets nothing from it, or a number that can be given otherwise:

    projection    its value is 0, or all weights that surviving outputs have for it are 0, or it is the same number for
                  every input and every place, and goes into the bias: not where zeros are padded around it
    matmul, sum   its value is 0, in either operand of a product

All else, such as neurons, batch norms and residual additions, keeps channels apart. What nothing surviving reads makes
others unread, so that this runs to its fixed point; the bounds themselves do not change, as what goes gave nothing.
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
    """What may go from a program, and why the rest stays.

    Attributes:
        masks: what stays of every group, ``[heads, d]``.
        rounds: until nothing more went.
        spikes: axes and bounds of what neurons fire, where some of it is the same for every input.
    """

    def __init__(self, program: Program) -> None:
        self.program, self.bounds, self.rounds = program, all_intervals(program), 0
        self.readers = list(consumers_of(program, self.bounds))
        spikes = ((channels(program.type_of(node)), self.bounds[node]) for node in program.neurons())
        self.spikes = [(of, bound) for of, bound in spikes if bound.constant.any()]
        self.masks: Masks = {g.name: np.ones((g.heads, g.axis.size), dtype=bool) for g in program.groups}
        while self._round():
            self.rounds += 1

    @property
    def found(self) -> Masks:
        return {name: mask for name, mask in self.masks.items() if not mask.all()}

    def _round(self) -> bool:
        """Take all that may go now; what went in earlier rounds stays gone, since others went for it."""
        if self.rounds:
            chosen, _ = selection(self.program, self.masks)
            for reader in self.readers:
                reader.refresh(chosen)
        before = sum(int(mask.sum()) for mask in self.masks.values())
        heads = {key: self._heads(sharing) for key, sharing in head_axes(self.program.groups).items()}
        for group in self.program.groups:
            stays = heads.get(id(group.head_axis), np.ones(group.heads, dtype=bool))
            self.masks[group.name] = self._keep(group, stays)
        return sum(int(mask.sum()) for mask in self.masks.values()) < before

    def reading(self, axis: Axis | None) -> list[ChannelConsumer]:
        return [reader for reader in self.readers if id(axis) in reader.summed]

    def _heads(self, sharing: list[ChannelGroup]) -> np.ndarray:
        """Which heads stay: one goes where all that is in it may, in every group that has heads of these."""
        axis = sharing[0].head_axis
        assert axis is not None
        there = np.asarray(self.masks[sharing[0].name].any(axis=1))
        if axis.frozen or axis.intact or any(group.frozen for group in sharing):
            return there
        free = np.ones(axis.size, dtype=bool)
        for reader in self.reading(axis):
            free &= reader.allows(axis).numpy()
        return _without(there, free, axis.size - 1, np.zeros(axis.size))

    def allowed(self, group: ChannelGroup) -> tuple[np.ndarray, np.ndarray]:
        """``[heads, d]`` each: which elements may go, and how many layers would have to take them into their biases."""
        free, fold = np.ones((group.heads, group.axis.size), dtype=bool), np.zeros((group.heads, group.axis.size))
        for reader in self.reading(group.axis):
            free &= reader.allows(group.head_axis, group.axis).numpy()
            if isinstance(reader, ProjectionConsumer):
                fold += reader.needs_fold(group.head_axis, group.axis).numpy()
        return free, fold

    def _keep(self, group: ChannelGroup, heads: np.ndarray) -> np.ndarray:
        mask: np.ndarray = self.masks[group.name] & heads[:, None]
        if group.frozen is not None or group.whole_heads is not None:
            return mask
        free, fold = self.allowed(group)
        if group.shared:  # mixed heads lose the same dimensions
            there, common = np.asarray(mask[heads].any(axis=0)), np.asarray(free[heads].all(axis=0))
            row = _without(there, common, group.axis.size - 1, fold.max(axis=0))
            return heads[:, None] & row
        count = min(int(free[heads].sum(axis=1).min()), group.axis.size - 1)
        for head in np.flatnonzero(heads):
            mask[head] = _without(mask[head], free[head], count, fold[head])
        return mask

    def taken_over(self, reader: ProjectionConsumer) -> np.ndarray:
        """Inputs of a layer that go and whose value its bias must take over, as indices."""
        chosen, _ = selection(self.program, self.masks)
        gone = reader.folds.numpy().copy()
        stays = chosen(tuple(reader.leaves))
        gone[slice(None) if stays is None else stays] = False
        return np.flatnonzero(gone)

    def folded(self, group: ChannelGroup) -> int:
        """How many elements of a group go into biases."""
        _, fold = self.allowed(group)
        return int((~self.masks[group.name] & (fold > 0)).sum())

    def refused(self, group: ChannelGroup, which: np.ndarray) -> dict[str, int]:
        """Why elements ``which [heads, d]`` stay: reason -> how many."""
        left: np.ndarray = which & self.masks[group.name]
        if group.frozen or group.whole_heads:
            return {group.frozen or group.whole_heads or "": int(left.sum())} if left.any() else {}
        found: Counter[str] = Counter()
        for reader in self.reading(group.axis):
            for flags, why in reader.reasons(group.head_axis, group.axis):
                hit = left & flags.numpy()
                found[why] += int(hit.sum())
                left &= ~hit
        rest = "every head must keep as many" if not group.shared else "mixed heads must keep the same dimensions"
        found["at least one channel must stay" if group.axis.size == 1 else rest] += int(left.sum())
        return {why: n for why, n in found.items() if n}

    def firing(self, group: ChannelGroup, test: Callable[[Interval], torch.Tensor]) -> np.ndarray:
        """Elements ``[heads, d]`` of a group at which some neuron passes a test on its spikes."""
        result = np.zeros((group.heads, group.axis.size), dtype=bool)
        for of, bound in self.spikes:
            if any(axis is group.axis for axis in of):
                flags = test(bound).reshape([axis.size for axis in of])
                result |= onto(flags, of, (group.head_axis, group.axis)).numpy()
        return result


def _without(mask: np.ndarray, free: np.ndarray, count: int, cost: np.ndarray) -> np.ndarray:
    """``mask`` less ``count`` elements that are free: first those that are gone, then the cheapest."""
    order = np.lexsort((np.arange(len(mask)), cost, mask, ~free))
    result = mask.copy()
    result[order[: min(count, int(free.sum()))]] = False
    return result
