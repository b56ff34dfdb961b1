"""Within a drop: the smallest plan that loses no more accuracy than the user allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from svitc.errors import BudgetError
from svitc.passes.policies.problem import Problem
from svitc.passes.policies.search_space import Space

SEARCH = 6  # halvings of the range of sizes


def smallest(problem: Problem, space: Space, at: Callable[[int], list[int]], refit: str, policy: str) -> list[int]:
    """The smallest plan within the drop, by halving the range of sizes; the whole where none is.

    Args:
        at: gives the index that keeps at most so much.
    """
    assert problem.max_drop is not None
    measure, whole = problem.required_measure(policy), problem.cost()
    low, high, best = space.cost(problem.cost, [0] * len(space.choices)), whole, list(space.full)
    for _ in range(SEARCH):
        middle = (low + high) // 2
        index = at(middle)
        point = measure([space.plan(index)], refit, "smallest within the drop")[0]
        problem.reporter.decide(f"{middle / whole:.1%} kept: {100 * point.drop:.1f} points lost")
        if point.drop <= problem.max_drop:
            high, best = middle, index
        else:
            low = middle
    return best


def last(problem: Problem, space: Space, steps: Sequence[list[int]], refit: str, policy: str) -> list[int]:
    """The last of ever smaller plans that is within the drop, by halving their number; the first one counts as within."""
    assert problem.max_drop is not None
    measure = problem.required_measure(policy)
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        point = measure([space.plan(steps[middle])], refit, "smallest within the drop")[0]
        if point.drop <= problem.max_drop:
            low = middle
        else:
            high = middle
    return steps[low]


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
        hint=f"The best that was found within them keeps {kept:.4f}. Allow more, or leave --max-drop out and --finetune.",
    )
