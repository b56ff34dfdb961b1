"""The ladder: plans from the most cautious to the boldest, for images that no search has seen to choose among.

How far a search may go is told by the drop that the choosing images predict, a smooth figure; whether a plan keeps to
the drop, other images tell, one plan after the other (evaluation/promise.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from svitc.passes.policies.problem import Problem
from svitc.passes.policies.search_space import Space
from svitc.planning.plan import Plan
from svitc.support.bisection import bisect

SHARES = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.7, 0.85, 1.0, 1.3)  # of the drop, that the plans are predicted to lose
CAUTIOUS = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85)  # of the range of plans, before the first that is predicted
PARTS = 4  # of one step of a search that takes large ones
HALVINGS = 6  # of the range of plans, to find the boldest


def by_size(problem: Problem, space: Space, at: Callable[[int], list[int]], refit: str, policy: str) -> list[list[int]]:
    """Return indices of plans, from the largest to the smallest.

    Args:
        problem: the problem, with a ``max_drop``.
        space: the plans.
        at: returns the index of a plan whose cost is at most a number.
        refit: how pruned networks are refitted.
        policy: name of the policy, for messages.
    """
    full_cost, smallest = problem.cost(), space.cost(problem.cost, [0] * len(space.choices))
    found: dict[int, list[int]] = {}

    def index(saved: int) -> list[int]:
        if saved not in found:
            found[saved] = at(full_cost - saved)
        return found[saved]

    saved = _positions(problem, lambda saved: space.plan(index(saved)), full_cost - smallest, refit, policy)
    return _distinct([index(s) for s in saved], lambda each: tuple(each) == tuple(space.full) and not problem.bits)


def by_step(problem: Problem, steps: Sequence[Plan], refit: str, policy: str) -> list[Plan]:
    """Return some of the plans that a search went through.

    Args:
        problem: the problem, with a ``max_drop``.
        steps: the plans, each smaller than the one before.
        refit: how their networks are refitted to be measured.
        policy: name of the policy, for messages.
    """
    positions = _positions(problem, lambda position: steps[position], len(steps) - 1, refit, policy)
    return [steps[position] for position in dict.fromkeys(positions)]


def refined(steps: Sequence[list[int]]) -> list[list[int]]:
    """Return indices of plans with ``PARTS`` - 1 more between each two, where a search takes large steps."""
    between = [
        [i + (j - i) * part // PARTS for i, j in zip(start, end, strict=True)]
        for start, end in pairwise(steps)
        for part in range(1, PARTS + 1)
    ]
    return _distinct([steps[0], *between], lambda each: False)


def _positions(problem: Problem, plan: Callable[[int], Plan], last: int, refit: str, policy: str) -> list[int]:
    """Return positions of plans that are predicted to lose ``SHARES`` of the drop, ascending.

    A few images predict no loss at all up to bold plans. So some come first whatever is predicted.

    Args:
        problem: the problem.
        plan: returns the plan at a position: at 0 the most cautious one.
        last: position of the boldest.
        refit: how pruned networks are refitted.
        policy: name of the policy, for messages.
    """
    assert problem.max_drop is not None
    measure, drop = problem.required_measure(policy), problem.max_drop
    predicted: dict[int, float] = {}

    def loss(position: int) -> float:
        if position not in predicted:
            point = measure([plan(position)], refit, f"{policy}: how far to go")[0]
            predicted[position] = point.expected_drop
        return predicted[position]

    boldest = SHARES[-1] * drop
    if loss(last) > boldest:
        loss(bisect(0, last, lambda position: loss(position) <= boldest, HALVINGS if last > 2**HALVINGS else None))
    loss(0)
    known = sorted(predicted)
    losses = np.maximum.accumulate([predicted[position] for position in known])
    # of several positions with the same loss the boldest; between two neighbors, the loss is taken to be linear
    last_of = [i for i in range(len(known)) if i + 1 == len(known) or losses[i + 1] > losses[i]]
    wanted = np.interp([share * drop for share in SHARES], losses[last_of], np.array(known, dtype=float)[last_of])
    cautious = [share * last for share in CAUTIOUS if share * last < wanted[0]]
    return [int(position) for position in (*cautious, *wanted)]


def _distinct(indices: Sequence[list[int]], left_out: Callable[[list[int]], bool]) -> list[list[int]]:
    """Return each index once, in their order, without those that are left out."""
    return [list(each) for each in dict.fromkeys(map(tuple, indices)) if not left_out(list(each))]


__all__ = ["by_size", "by_step", "refined"]
