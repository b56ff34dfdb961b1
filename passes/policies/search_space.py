"""What a policy may choose: the axes that can be cut, the sizes that each may have, and which elements then stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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


class Widths:
    """Sizes that a choice may have, ascending; the last is its own."""

    widths: list[int]

    @property
    def size(self) -> int:
        return self.widths[-1]

    @property
    def full(self) -> int:
        """Index of its own size."""
        return len(self.widths) - 1

    def at(self, share: float) -> int:
        """Index of the largest allowed size that is at most ``share`` of the whole, or 0."""
        wanted = share * self.size + 1e-9
        return max(0, sum(width <= wanted for width in self.widths) - 1)


@dataclass
class Choice(Widths):
    """One axis whose size the policy may choose.

    Attributes:
        axis: a group's axis, or a head axis: with ``--prune-heads``, or where only whole heads may go.
        groups: what shrinks with it.
        widths: allowed sizes, ascending; the last is the axis' own.
    """

    axis: Axis
    groups: list[ChannelGroup]
    widths: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.groups[0].name + (" (heads)" if self.axis is self.groups[0].head_axis else "")

    @property
    def heads(self) -> int:
        return self.groups[0].heads


@dataclass
class BitChoice(Widths):
    """One layer whose weights may have fewer bits.

    Attributes:
        layer: its path.
        widths: allowed bits, ascending.
    """

    layer: str
    widths: list[int]
    heads: int = 1

    @property
    def name(self) -> str:
        return f"{self.layer} (bits)"


@dataclass
class Settings:
    """What all policies take.

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

    def to_json(self) -> dict:
        return {
            "criterion": self.criterion,
            "round_to": self.round_to,
            "prune_heads": self.prune_heads,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "seed": self.seed,
        }


class Space:
    """All plans that the settings allow: an index into the widths of each choice, of axes and then of bits.

    Args:
        bits: layer -> the bits that its weights may have, ascending.

    Raises:
        UsageError: an unknown criterion, or a glob that matches no group.
    """

    def __init__(
        self,
        program: Program,
        settings: Settings,
        calibrating: Callable[[], Calibration] | None = None,
        bits: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        if settings.criterion not in CRITERIA:
            known = ", ".join(CRITERIA)
            raise UsageError(f"there is no criterion {settings.criterion!r}", hint=f"Known: {known}.")
        self.program, self.settings = program, settings
        self.about = Context(program, np.random.default_rng(settings.seed), calibrating)
        self.choices: list[Choice | BitChoice] = [
            *self._choices(),
            *(BitChoice(layer, list(some)) for layer, some in (bits or {}).items()),
        ]
        self._scores: dict[str, np.ndarray] = {}

    @property
    def full(self) -> list[int]:
        return [choice.full for choice in self.choices]

    def cost(self, cost: Cost, index: Sequence[int]) -> int:
        """What the plan at an index keeps."""
        pairs = list(zip(self.choices, index, strict=True))
        return cost(
            {id(c.axis): c.widths[i] for c, i in pairs if isinstance(c, Choice)},
            {c.layer: c.widths[i] for c, i in pairs if isinstance(c, BitChoice)},
        )

    def plan(self, index: Sequence[int]) -> Plan:
        """The plan at an index: of every group the elements with the highest scores."""
        keep: dict[str, np.ndarray] = {}
        bits: dict[str, int] = {}
        for choice, i in zip(self.choices, index, strict=True):
            width = choice.widths[i]
            if isinstance(choice, BitChoice):
                bits[choice.layer] = width
                continue
            if width == choice.size:
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
        return Plan(keep, bits=bits)

    def _score(self, group: ChannelGroup) -> np.ndarray:
        if group.name not in self._scores:
            self._scores[group.name] = CRITERIA[self.settings.criterion](self.about, group)
        return self._scores[group.name]

    def _choices(self) -> list[Choice]:
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
        """Raises BudgetError where even the smallest widths exceed the limit, saying what binds."""
        least = self.cost(cost, [0] * len(self.choices))
        if least <= limit:
            return
        cut = [choice for choice in self.choices if isinstance(choice, Choice)]
        chosen = {id(choice.axis) for choice in cut}
        held: dict[str, int] = {}
        narrow = {c.layer: c.widths[0] for c in self.choices if isinstance(c, BitChoice)}
        for group in self.program.groups:
            if id(group.axis) not in chosen:
                reason = group.frozen or "excluded, or kept for its heads"
                one = cost({**{id(c.axis): c.widths[0] for c in cut}, id(group.axis): 1}, narrow)
                held[f"{group.name} ({reason})"] = least - one
        binding = ", ".join(name for name, _ in sorted(held.items(), key=lambda item: -item[1])[:3])
        share = least / cost()
        raise BudgetError(
            f"the budget of {limit:,} {what} cannot be met: with every group at its smallest width"
            f" {least:,} {what} are left ({share:.4f} of the original)",
            hint=f"What binds: {binding or 'nothing may be pruned'}. Ask for at least "
            f"{math.ceil(share * 1e4) / 1e4:.4f},"
            " or free more groups with --include, --exclude and --round-to.",
        )

    def fill(self, cost: Cost, index: list[int], limit: int, order: Sequence[int] | None = None) -> None:
        """Raise single widths of an index, in place, while they fit: in an order, or the narrowest first."""
        open_ = set(range(len(self.choices)))
        while open_:

            def share(i: int) -> tuple[float, int]:
                return self.choices[i].widths[index[i]] / self.choices[i].size, i

            i = min(open_, key=share) if order is None else next(i for i in order if i in open_)
            if index[i] >= self.choices[i].full:
                open_.discard(i)
                continue
            index[i] += 1
            if self.cost(cost, index) > limit:
                index[i] -= 1
                open_.discard(i)


def _widths(size: int, step: int) -> list[int]:
    return sorted({*range(step, size, step), size})


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Mask of the ``count`` highest scores in each row; of equal scores the first stays."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask
