"""The uniform policy: the same pruning ratio for every group, as small as the budget allows."""

from __future__ import annotations

from dataclasses import dataclass

from svitc.passes.policies.ladder import by_size
from svitc.passes.policies.max_drop import require, smallest
from svitc.passes.policies.policy import Policy
from svitc.passes.policies.problem import Problem
from svitc.passes.policies.search_space import Settings, Space
from svitc.planning.plan import Plan
from svitc.support.bisection import bisect

SHARE_HALVINGS = 40  # of the range of shares


@dataclass
class Uniform(Settings, Policy):
    """Keep the same share of every group; needs data only where there is a ``max_drop``."""

    refit: str = "none"

    def plan(self, problem: Problem) -> Plan:
        """Return the plan that keeps the most within the limit.

        After the common share is found, the widths of single groups are raised again while the plan fits, those
        farthest below the share first, so that little of the budget is left unused.

        Raises:
            UsageError: an unknown criterion, a glob that matches no group, or neither a budget nor a ``max_drop``.
            BudgetError: even the smallest widths exceed the limit, or the plan loses more than ``max_drop``.
        """
        space = Space(problem.program, self, problem.calibrating)

        def within() -> list[int]:
            return smallest(problem, space, lambda limit: _index(space, problem, limit), self.refit, "uniform")

        if problem.limit is None and problem.max_drop is not None:
            index = within()
        else:
            index = uniform_index(space, problem)
            require(problem, space, index, within, self.refit, "uniform")
        return self._plan(space, index)

    def ladder(self, problem: Problem) -> list[Plan]:
        """See ``Policy``: plans of several sizes."""
        space = Space(problem.program, self, problem.calibrating)
        indices = by_size(problem, space, lambda limit: _index(space, problem, limit), self.refit, "uniform")
        return [self._plan(space, index) for index in indices]

    def _plan(self, space: Space, index: list[int]) -> Plan:
        plan = space.plan(index)
        plan.provenance = {"policy": "uniform", **self.to_json()}
        return plan


def uniform_index(space: Space, problem: Problem) -> list[int]:
    """Return the index with the largest common share within the limit, and then single widths raised up to it."""
    limit = problem.required_limit("uniform")
    space.require(problem.cost, limit, problem.what)
    return _index(space, problem, limit)


def _index(space: Space, problem: Problem, limit: int) -> list[int]:
    if problem.cost() <= limit:
        return space.full
    share = bisect(
        0.0, 1.0, lambda s: space.cost(problem.cost, [c.at(s) for c in space.choices]) <= limit, SHARE_HALVINGS
    )
    index = [c.at(share) for c in space.choices]
    space.fill(problem.cost, index, limit)
    return index
