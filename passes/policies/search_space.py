"""The search space of a policy: the axes that can be pruned, the sizes that each may have, and the channels to keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import TypeAlias

import numpy as np

from svitc.analysis.calibration import Calibration
from svitc.errors import BudgetError, UsageError
from svitc.ir.axes import Axis
from svitc.ir.channel_groups import ChannelGroup, head_axes
from svitc.ir.program import Program
from svitc.passes.policies.criteria.base import Context
from svitc.passes.policies.criteria.registry import CRITERIA
from svitc.planning.cost import Cost
from svitc.planning.plan import Plan
from svitc.support.types import JsonDict


class Widths:
    """The sizes that a choice may have, ascending; the last is the original size."""

    widths: list[int]

    @property
    def size(self) -> int:
        """The original size."""
        return self.widths[-1]

    @property
    def full(self) -> int:
        """Index of the original size."""
        return len(self.widths) - 1

    def at(self, share: float) -> int:
        """Return the index of the largest allowed size that is at most a share of the original size, or else 0."""
        limit = share * self.size + 1e-9
        return max(0, sum(width <= limit for width in self.widths) - 1)


@dataclass
class Choice(Widths):
    """One axis whose size the policy may choose.

    Attributes:
        axis: a group's axis; or a head axis, with ``--prune-heads`` or where only whole heads can be pruned.
        groups: the channel groups that shrink with it.
        widths: allowed sizes, ascending; the last is the original size.
    """

    axis: Axis
    groups: list[ChannelGroup]
    widths: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name in messages and reports."""
        return self.groups[0].name + (" (heads)" if self.axis is self.groups[0].head_axis else "")

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.groups[0].heads


@dataclass
class BitChoice(Widths):
    """One layer whose weights may have fewer bits.

    Attributes:
        layer: path of the layer.
        widths: allowed bits, ascending.
    """

    layer: str
    widths: list[int]
    heads: int = 1

    @property
    def name(self) -> str:
        """Name in messages and reports."""
        return f"{self.layer} (bits)"


@dataclass
class RankChoice(Widths):
    """One layer whose weights may have a low rank.

    Attributes:
        layer: path of the layer.
        widths: allowed ranks, ascending; the last is the largest that its weights can have.
    """

    layer: str
    widths: list[int]
    heads: int = 1

    @property
    def name(self) -> str:
        """Name in messages and reports."""
        return f"{self.layer} (rank)"


AnyChoice: TypeAlias = Choice | BitChoice | RankChoice


@dataclass
class Settings:
    """Settings of all policies.

    Attributes:
        criterion: the importance criterion, a key of CRITERIA; the least important channels are pruned first.
        include: globs over group names; other groups are not pruned. Empty for all groups.
        exclude: globs over ignored layers; groups that would change the shape of one are not pruned.
        round_to: widths are multiples of this.
        prune_heads: prune whole attention heads instead of channels of every head.
        seed: seed of the ``random`` criterion.
        low_rank: whether large convolutions may be stored as two of a low rank, where the policy is ``auto``.
    """

    criterion: str = "l2"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    round_to: int = 1
    prune_heads: bool = False
    seed: int = 0
    low_rank: bool = True

    def to_json(self) -> JsonDict:
        """Return the settings as JSON values."""
        return {
            "criterion": self.criterion,
            "round_to": self.round_to,
            "prune_heads": self.prune_heads,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "seed": self.seed,
        }


class Space:
    """All plans that the settings allow.

    A plan is a list of indices, one into the widths of each choice: first the choices of axes, then those of bits, then
    those of ranks.

    Args:
        program: the original.
        settings: the settings of the policy.
        calibrating: returns statistics on images, for criteria that need them; None without data.
        bits: layer -> the bits that its weights may have, ascending.
        ranks: layer -> the largest rank of its weights, for layers that may have a lower one.

    Attributes:
        choices: the choices.

    Raises:
        UsageError: an unknown criterion, or a glob that matches no group.
    """

    def __init__(
        self,
        program: Program,
        settings: Settings,
        calibrating: Callable[[], Calibration] | None = None,
        bits: Mapping[str, Sequence[int]] | None = None,
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        if settings.criterion not in CRITERIA:
            raise UsageError(f"there is no criterion {settings.criterion!r}", hint=f"Known: {', '.join(CRITERIA)}.")
        self.program, self.settings = program, settings
        self.context = Context(program, np.random.default_rng(settings.seed), calibrating)
        self.choices: list[AnyChoice] = [
            *self._choices(),
            *(BitChoice(layer, list(widths)) for layer, widths in (bits or {}).items()),
            *(RankChoice(layer, list(range(1, most + 1))) for layer, most in self._ranked(ranks or {})),
        ]
        self._scores: dict[str, np.ndarray] = {}

    @property
    def full(self) -> list[int]:
        """Index of the unpruned plan."""
        return [choice.full for choice in self.choices]

    def cost(self, cost: Cost, index: Sequence[int]) -> int:
        """Return the cost of the plan at an index."""
        pairs = list(zip(self.choices, index, strict=True))
        return cost(
            {id(c.axis): c.widths[i] for c, i in pairs if isinstance(c, Choice)},
            {c.layer: c.widths[i] for c, i in pairs if isinstance(c, BitChoice)},
            {c.layer: c.widths[i] for c, i in pairs if isinstance(c, RankChoice)},
        )

    def plan(self, index: Sequence[int]) -> Plan:
        """Return the plan at an index, which keeps the most important channels of every group."""
        keep: dict[str, np.ndarray] = {}
        bits: dict[str, int] = {}
        ranks: dict[str, int] = {}
        for choice, i in zip(self.choices, index, strict=True):
            width = choice.widths[i]
            if isinstance(choice, BitChoice):
                bits[choice.layer] = width
                continue
            if width == choice.size:
                continue
            if isinstance(choice, RankChoice):
                ranks[choice.layer] = width
                continue
            if choice.axis is choice.groups[0].head_axis:
                scores = [self._score(group) for group in choice.groups]
                total = sum(np.sqrt((s**2).sum(axis=1)) / max(np.sqrt((s**2).sum()), 1e-300) for s in scores)
                for group in choice.groups:
                    keep[group.name] = np.repeat(top(np.asarray(total)[None], width).T, group.axis.size, axis=1)
                continue
            group = choice.groups[0]
            score = self._score(group)
            if group.shared:
                score = np.broadcast_to(score.sum(axis=0, keepdims=True), score.shape)
            keep[group.name] = top(score, width)
        return Plan(keep, bits=bits, ranks=ranks)

    def _ranked(self, ranks: Mapping[str, int]) -> list[tuple[str, int]]:
        """Return the layers that may have a low rank: none where groups are named, and without those to ignore."""
        ignored = self.settings.exclude
        every = ranks.items() if self.settings.low_rank and not self.settings.include else ()
        return [(layer, most) for layer, most in every if not any(fnmatch(layer, glob) for glob in ignored)]

    def _score(self, group: ChannelGroup) -> np.ndarray:
        """Return the importance of each channel, ``[heads, channels of a head]``."""
        if group.name not in self._scores:
            self._scores[group.name] = CRITERIA[self.settings.criterion](self.context, group)
        return self._scores[group.name]

    def _choices(self) -> list[Choice]:
        """Return the choices of axes: head axes first, then those of single groups."""
        groups, settings = self.program.groups, self.settings
        for glob in [g for g in settings.include if not any(group.named(g) for group in groups)]:
            names = ", ".join(g.name for g in groups if g.frozen is None)
            raise UsageError(f"{glob!r} names no group", hint=f"Groups: {names}.")
        for glob in [g for g in settings.exclude if not any(group.touches(g) for group in groups)]:
            raise UsageError(f"{glob!r} matches no group or layer", hint="svitc inspect lists both.")

        def free(group: ChannelGroup) -> bool:
            included = not settings.include or any(group.named(glob) for glob in settings.include)
            return group.frozen is None and included and not any(group.touches(glob) for glob in settings.exclude)

        choices: list[Choice] = []
        by_head = {
            key: sharing
            for key, sharing in head_axes(groups).items()
            if settings.prune_heads or any(group.whole_heads for group in sharing)
        }
        for sharing in by_head.values():
            head = sharing[0].head_axis
            assert head is not None
            if head.frozen is None and all(free(group) for group in sharing):
                choices.append(Choice(head, sharing, _widths(head.size, 1)))
        for group in groups:
            if free(group) and id(group.head_axis) not in by_head:
                step = settings.round_to // math.gcd(settings.round_to, group.heads)
                choices.append(Choice(group.axis, [group], _widths(group.axis.size, step)))
        return choices

    def require(self, cost: Cost, limit: int, what: str) -> None:
        """Check that a limit can be met.

        Args:
            cost: the cost of plans.
            limit: the largest cost.
            what: what the cost counts, ``bytes`` or ``parameters``.

        Raises:
            BudgetError: even the smallest widths exceed the limit; the hint names the groups that contribute most.
        """
        smallest = self.cost(cost, [0] * len(self.choices))
        if smallest <= limit:
            return
        axis_choices = [choice for choice in self.choices if isinstance(choice, Choice)]
        chosen_axes = {id(choice.axis) for choice in axis_choices}
        unchosen: dict[str, int] = {}
        fewest_bits = {c.layer: c.widths[0] for c in self.choices if isinstance(c, BitChoice)}
        lowest = {c.layer: c.widths[0] for c in self.choices if isinstance(c, RankChoice)}
        for group in self.program.groups:
            if id(group.axis) not in chosen_axes:
                reason = group.frozen or "excluded, or kept for its heads"
                narrow = {**{id(c.axis): c.widths[0] for c in axis_choices}, id(group.axis): 1}
                cost_of_one = cost(narrow, fewest_bits, lowest)
                unchosen[f"{group.name} ({reason})"] = smallest - cost_of_one
        binding = ", ".join(name for name, _ in sorted(unchosen.items(), key=lambda item: -item[1])[:3])
        share = smallest / cost()
        raise BudgetError(
            f"the budget of {limit:,} {what} cannot be met: with every group at its smallest width"
            f" {smallest:,} {what} are left ({share:.4f} of the original)",
            hint=f"What binds: {binding or 'nothing may be pruned'}. Ask for at least "
            f"{math.ceil(share * 1e4) / 1e4:.4f},"
            " or free more groups with --include, --exclude and --round-to.",
        )

    def fill(self, cost: Cost, index: list[int], limit: int, order: Sequence[int] | None = None) -> None:
        """Raise single widths of an index while the plan fits.

        Args:
            cost: the cost of plans.
            index: the index; changed in place.
            limit: the largest cost.
            order: the order of choices to raise; by default always the one with the smallest share of its size.
        """
        remaining = set(range(len(self.choices)))
        while remaining:

            def share(i: int) -> tuple[float, int]:
                return self.choices[i].widths[index[i]] / self.choices[i].size, i

            i = min(remaining, key=share) if order is None else next(i for i in order if i in remaining)
            if index[i] >= self.choices[i].full:
                remaining.discard(i)
                continue
            index[i] += 1
            if self.cost(cost, index) > limit:
                index[i] -= 1
                remaining.discard(i)


def _widths(size: int, step: int) -> list[int]:
    """Return the multiples of a step up to a size, and the size."""
    return sorted({*range(step, size, step), size})


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the mask of the highest scores in each row; of equal scores the first is kept.

    Args:
        scores: ``[rows, channels]``.
        count: number of channels to keep in each row.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask
