"""The uniform policy: the same share of every prunable group, as large as the budget allows."""

from __future__ import annotations

from dataclasses import dataclass

from svitc.passes.policies.max_drop import require, smallest
from svitc.passes.policies.problem import Problem
from svitc.passes.policies.search_space import Settings, Space
from svitc.planning.plan import Plan


@dataclass
class Uniform(Settings):
    """Keep the same share of every group; needs no data, unless a drop is given."""

    refit: str = "none"

    def plan(self, problem: Problem) -> Plan:
        """The plan that keeps most within the limit.

        After the common share is found, single widths are raised again where they fit, those farthest
        below the share first, so that the budget is used to its last percent.

        Raises:
            UsageError: an unknown criterion, a glob that matches no group, or neither a budget nor a drop.
            BudgetError: even the smallest widths exceed the limit, or the plan loses more than the user allows.
        """
        space = Space(problem.program, self, problem.calibrating)

        def within() -> list[int]:
            return smallest(problem, space, lambda limit: _index(space, problem, limit), self.refit, "uniform")

        if problem.limit is None and problem.max_drop is not None:
            index = within()
        else:
            index = uniform_index(space, problem)
            require(problem, space, index, within, self.refit, "uniform")
        plan = space.plan(index)
        plan.provenance = {"policy": "uniform", **self.to_json()}
        return plan


def uniform_index(space: Space, problem: Problem) -> list[int]:
    """The largest common share within the limit, then single widths up to it."""
    limit = problem.required_limit("uniform")
    space.require(problem.cost, limit, problem.what)
    return _index(space, problem, limit)


def _index(space: Space, problem: Problem, limit: int) -> list[int]:
    if problem.cost() <= limit:
        return space.full
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if space.cost(problem.cost, [c.at(middle) for c in space.choices]) <= limit:
            low = middle
        else:
            high = middle
    index = [c.at(low) for c in space.choices]
    space.fill(problem.cost, index, limit)
    return index
