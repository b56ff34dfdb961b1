"""The largest drop in accuracy: find the smallest plan within it, or reject a plan that exceeds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from svitc.errors import BudgetError
from svitc.passes.policies.problem import Problem
from svitc.passes.policies.search_space import Space
from svitc.support.bisection import bisect

SIZE_HALVINGS = 6  # of the range of sizes


def smallest(problem: Problem, space: Space, at: Callable[[int], list[int]], refit: str, policy: str) -> list[int]:
    """Return the index of the smallest plan within the drop, by bisection over sizes; that of the unpruned one if none.

    Args:
        problem: the problem, with a ``max_drop``.
        space: the plans.
        at: returns the index of a plan whose cost is at most a number.
        refit: how pruned networks are refitted.
        policy: name of the policy, for messages.
    """
    assert problem.max_drop is not None
    measure, full_cost = problem.required_measure(policy), problem.cost()
    allowed = problem.max_drop
    indices = {full_cost: list(space.full)}

    def within(size: int) -> bool:
        index = at(size)
        point = measure([space.plan(index)], refit, "smallest within the drop")[0]
        problem.reporter.decide(f"{size / full_cost:.1%} kept: {100 * point.drop:.1f} points lost")
        if point.drop <= allowed:
            indices[size] = index
        return point.drop <= allowed

    return indices[bisect(full_cost, space.cost(problem.cost, [0] * len(space.choices)), within, SIZE_HALVINGS)]


def last(problem: Problem, space: Space, steps: Sequence[list[int]], refit: str, policy: str) -> list[int]:
    """Return the last index within the drop, by bisection.

    Args:
        problem: the problem, with a ``max_drop``.
        space: the plans.
        steps: indices of plans, each smaller than the one before; the first is taken to be within the drop.
        refit: how pruned networks are refitted.
        policy: name of the policy, for messages.
    """
    assert problem.max_drop is not None
    measure, allowed = problem.required_measure(policy), problem.max_drop

    def within(number: int) -> bool:
        return measure([space.plan(steps[number])], refit, "smallest within the drop")[0].drop <= allowed

    return steps[bisect(0, len(steps), within)]


def require(
    problem: Problem, space: Space, index: list[int], best: Callable[[], list[int]], refit: str, policy: str
) -> None:
    """Check that the plan for a budget is within the drop, where there is one.

    Args:
        problem: the problem.
        space: the plans.
        index: index of the plan.
        best: returns the index of the smallest plan within the drop, for the hint.
        refit: how pruned networks are refitted.
        policy: name of the policy, for messages.

    Raises:
        BudgetError: the plan loses more accuracy than the user allows.
    """
    if problem.max_drop is None:
        return
    point = problem.required_measure(policy)([space.plan(index)], refit, "the plan")[0]
    if point.drop <= problem.max_drop:
        return
    kept = space.cost(problem.cost, best()) / problem.cost()
    raise BudgetError(
        f"the budget costs {100 * point.drop:.1f} points, more than the {100 * problem.max_drop:g} allowed",
        hint=f"The best that was found within them keeps {kept:.4f}. Allow more, or leave --max-drop out and "
        "--finetune.",
    )
