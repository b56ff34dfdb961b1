"""The uniform policy: the same share of every prunable group, as large as the budget allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from svitc.axes import Axis
from svitc.budget import Cost
from svitc.coupling import ChannelGroup, head_axes
from svitc.errors import BudgetError, UsageError
from svitc.plan import Plan
from svitc.program import Program

from .criteria import CRITERIA


@dataclass
class Choice:
    """One axis whose size the policy may choose.

    Attributes:
        axis: a group's axis, or with ``--prune-heads`` a head axis.
        groups: what shrinks with it.
        widths: allowed sizes, ascending; the last is the axis' own.
    """

    axis: Axis
    groups: list[ChannelGroup]
    widths: list[int] = field(default_factory=list)

    def at(self, share: float) -> int:
        """Index of the largest allowed size that is at most ``share`` of the whole, or 0."""
        wanted = share * self.axis.size + 1e-9
        return max(0, sum(width <= wanted for width in self.widths) - 1)


@dataclass
class Uniform:
    """Keep the same share of every group.

    Attributes:
        criterion: a key of CRITERIA; which channels of a group go first.
        include: globs over group names; what is not named is kept whole.
        exclude: globs over layers; a group that would change the shape of one is kept whole.
        round_to: widths are multiples of this.
        prune_heads: remove whole heads instead of dimensions of every head.
        seed: for ``random``.
    """

    criterion: str = "l2"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    round_to: int = 1
    prune_heads: bool = False
    seed: int = 0

    def plan(self, program: Program, cost: Cost, limit: int, what: str) -> Plan:
        """The plan that keeps most within ``limit``.

        After the common share is found, single widths are raised again where they fit, those farthest
        below the share first, so that the budget is used to its last percent.

        Raises:
            UsageError: an unknown criterion, or a glob that matches no group.
            BudgetError: even the smallest widths exceed the limit.
        """
        if self.criterion not in CRITERIA:
            raise UsageError(f"there is no criterion {self.criterion!r}", hint=f"Known: {', '.join(CRITERIA)}.")
        choices = self._choices(program)
        if cost() <= limit:
            return self._finish(program, choices, [len(c.widths) - 1 for c in choices])
        least = [0] * len(choices)
        if self._cost(cost, choices, least) > limit:
            raise self._unreachable(program, choices, cost, limit, what)
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            if self._cost(cost, choices, [c.at(middle) for c in choices]) <= limit:
                low = middle
            else:
                high = middle
        index = [c.at(low) for c in choices]
        self._fill(cost, choices, index, limit)
        return self._finish(program, choices, index)

    def _fill(self, cost: Cost, choices: list[Choice], index: list[int], limit: int) -> None:
        """Raise single widths while they fit."""
        open_ = set(range(len(choices)))
        while open_:

            def share(i: int) -> tuple[float, int]:
                return choices[i].widths[index[i]] / choices[i].axis.size, i

            i = min(open_, key=share)
            if index[i] + 1 >= len(choices[i].widths):
                open_.discard(i)
                continue
            index[i] += 1
            if self._cost(cost, choices, index) > limit:
                index[i] -= 1
                open_.discard(i)

    @staticmethod
    def _cost(cost: Cost, choices: list[Choice], index: list[int]) -> int:
        return cost({id(c.axis): c.widths[i] for c, i in zip(choices, index, strict=True)})

    def _choices(self, program: Program) -> list[Choice]:
        groups = program.groups
        for glob in [g for g in self.include if not any(group.named(g) for group in groups)]:
            names = ", ".join(g.name for g in groups if g.frozen is None)
            raise UsageError(f"{glob!r} names no group", hint=f"Groups: {names}.")
        for glob in [g for g in self.exclude if not any(group.touches(g) for group in groups)]:
            raise UsageError(f"{glob!r} matches no group or layer", hint="svitc inspect lists both.")

        def free(group: ChannelGroup) -> bool:
            included = not self.include or any(group.named(glob) for glob in self.include)
            return group.frozen is None and included and not any(group.touches(glob) for glob in self.exclude)

        choices: list[Choice] = []
        by_head = {key: sharing for key, sharing in head_axes(groups).items() if self.prune_heads}
        for sharing in by_head.values():
            head = sharing[0].head_axis
            assert head is not None
            if head.frozen is None and all(free(group) for group in sharing):
                choices.append(Choice(head, sharing, self._widths(head.size, 1)))
        for group in groups:
            if free(group) and not (self.prune_heads and group.head_axis is not None):
                step = self.round_to // math.gcd(self.round_to, group.heads)
                choices.append(Choice(group.axis, [group], self._widths(group.axis.size, step)))
        return choices

    @staticmethod
    def _widths(size: int, step: int) -> list[int]:
        return sorted({*range(step, size, step), size})

    def _finish(self, program: Program, choices: list[Choice], index: list[int]) -> Plan:
        rng = np.random.default_rng(self.seed)
        keep: dict[str, np.ndarray] = {}
        for choice, i in zip(choices, index, strict=True):
            width = choice.widths[i]
            scores = {group.name: CRITERIA[self.criterion](program, group, rng) for group in choice.groups}
            if width == choice.axis.size:
                continue
            if choice.axis is choice.groups[0].head_axis:
                total = sum(np.sqrt((s**2).sum(axis=1)) / np.sqrt((s**2).sum()) for s in scores.values())
                for group in choice.groups:
                    keep[group.name] = np.repeat(top(np.asarray(total)[None], width).T, group.axis.size, axis=1)
                continue
            group = choice.groups[0]
            score = scores[group.name]
            if group.shared:
                score = np.broadcast_to(score.sum(axis=0, keepdims=True), score.shape)
            keep[group.name] = top(score, width)
        made_by = {
            "policy": "uniform",
            "criterion": self.criterion,
            "round_to": self.round_to,
            "prune_heads": self.prune_heads,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "seed": self.seed,
        }
        return Plan(keep, made_by)

    def _unreachable(self, program: Program, choices: list[Choice], cost: Cost, limit: int, what: str) -> BudgetError:
        least = self._cost(cost, choices, [0] * len(choices))
        whole = {id(axis) for c in choices for axis in (c.axis,)}
        held: dict[str, int] = {}
        for group in program.groups:
            if id(group.axis) not in whole:
                reason = group.frozen or "excluded, or kept for its heads"
                one = cost({**{id(c.axis): c.widths[0] for c in choices}, id(group.axis): 1})
                held[f"{group.name} ({reason})"] = least - one
        binding = ", ".join(name for name, _ in sorted(held.items(), key=lambda item: -item[1])[:3])
        share = least / cost()
        return BudgetError(
            f"the budget of {limit:,} {what} cannot be met: with every group at its smallest width"
            f" {least:,} {what} are left ({share:.4f} of the original)",
            hint=f"What binds: {binding or 'nothing may be pruned'}. Ask for at least {math.ceil(share * 1e4) / 1e4:.4f},"
            " or free more groups with --include, --exclude and --round-to.",
        )


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Mask of the ``count`` highest scores in each row; of equal scores the first stays."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask
