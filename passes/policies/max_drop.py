"""Within a drop: the smallest plan that loses no more accuracy than the user allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from svitc.errors import BudgetError
from svitc.passes.policies.problem import Problem
from svitc.passes.policies.search_space import Space
from svitc.support.bisection import bisect

SEARCH = 6  # halvings of the range of sizes


def smallest(problem: Problem, space: Space, at: Callable[[int], list[int]], refit: str, policy: str) -> list[int]:
    """The smallest plan within the drop, by halving the range of sizes; the whole where none is.

    Args:
        at: gives the index that keeps at most so much.
    """
    assert problem.max_drop is not None
    measure, whole = problem.required_measure(policy), problem.cost()
    allowed = problem.max_drop
    good = {whole: list(space.full)}

    def within(size: int) -> bool:
        index = at(size)
        point = measure([space.plan(index)], refit, "smallest within the drop")[0]
        problem.reporter.decide(f"{size / whole:.1%} kept: {100 * point.drop:.1f} points lost")
        if point.drop <= allowed:
            good[size] = index
        return point.drop <= allowed

    return good[bisect(whole, space.cost(problem.cost, [0] * len(space.choices)), within, SEARCH)]


def last(problem: Problem, space: Space, steps: Sequence[list[int]], refit: str, policy: str) -> list[int]:
    """The last of ever smaller plans that is within the drop, by bisection; the first one counts as within."""
    assert problem.max_drop is not None
    measure, allowed = problem.required_measure(policy), problem.max_drop

    def within(number: int) -> bool:
        return measure([space.plan(steps[number])], refit, "smallest within the drop")[0].drop <= allowed

    return steps[bisect(0, len(steps), within)]


def require(
    problem: Problem, space: Space, index: list[int], best: Callable[[], list[int]], refit: str, policy: str
) -> None:
    """Raises BudgetError where the plan for the budget loses too much, saying the ``best`` that was found within."""
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
