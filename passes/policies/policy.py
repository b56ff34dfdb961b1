"""The interface of a policy, which makes plans, and the capabilities that it declares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from svitc.passes.policies.problem import Problem
from svitc.planning.plan import Plan


class Policy(ABC):
    """Base class of all policies; derive from it to write another one.

    Attributes:
        chooses_bits: whether it chooses the bits of each layer and prunes no channels.
        joint: whether it can choose channels and bits together, where the problem has bits to choose.
        refit: how pruned networks are refitted: ``none``, ``batch-norm``, ``readers`` or ``full``.
        exclude: globs over ignored layers, whose shape and bits it does not change.
    """

    chooses_bits: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    refit: str = "none"
    exclude: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The name in messages and reports; by default the name of the class, in lower case."""
        return type(self).__name__.lower()

    @abstractmethod
    def plan(self, problem: Problem) -> Plan:
        """Return the plan for a problem.

        Raises:
            BudgetError: no plan meets the limit, or all plans lose more accuracy than the user allows.
        """

    def ladder(self, problem: Problem) -> list[Plan]:
        """Return plans from the most cautious to the boldest, for a problem with a ``max_drop`` and without a limit.

        They are tested in this order on images that no search has seen. By default there is one.

        Raises:
            BudgetError: all plans lose more accuracy than the user allows.
        """
        return [self.plan(problem)]


__all__ = ["Policy"]
