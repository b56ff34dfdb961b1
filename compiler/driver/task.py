"""The task of one compilation: which program, how small, and with which weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from svitc.driver.prepare import Prepared
from svitc.planning.budget import Budget
from svitc.planning.plan import Plan


@dataclass(frozen=True)
class Task:
    """The task of one compilation.

    Attributes:
        prepared: the program that the plan is for.
        budget: the budget, or None.
        limit: the most bytes or parameters that may be kept, or None.
        weights: type of the stored weights.
        exclude: globs over ignored layers, which are not changed.
        replayed: the plan to replay, or None.
        whole: whether nobody set a limit, so that every channel stays.
        tokens: token stage -> positions of the tokens that run; empty where all do.
    """

    prepared: Prepared
    budget: Budget | None
    limit: int | None
    weights: str
    exclude: tuple[str, ...] = ()
    replayed: Plan | None = None
    whole: bool = False
    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def of(self) -> str:
        """What the limit counts: ``bytes`` or ``parameters``; ``latency`` where time is limited instead."""
        return "bytes" if self.budget is None else self.budget.of


__all__ = ["Task"]
