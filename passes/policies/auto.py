"""The automatic policy: choose all pruning ratios together, from measured sensitivity curves of refitted networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from svitc.passes.policies.ladder import by_size
from svitc.passes.policies.max_drop import require, smallest
from svitc.passes.policies.policy import Policy
from svitc.passes.policies.problem import Problem
from svitc.passes.policies.search_space import Settings, Space
from svitc.passes.policies.sensitivity import LADDER, SensitivityCurve, ladder, sensitivity_curves
from svitc.planning.plan import Plan

MIN_DIVERGENCE_NATS = 1e-4  # a smaller difference of two divergences is noise

FEWEST_POINTS = 3  # of a curve


@dataclass
class Auto(Settings, Policy):
    """A greedy knapsack over measured sensitivity curves.

    1. Prune each group alone, at each of several pruning ratios, and solve the weights of its consumers again in closed
       form (passes/pruning/refit_consumers.py). Measure the divergence of the class probabilities from the original's,
       which is smoother than the accuracy on the same number of images.
    2. Assume that divergences of several groups add up. From the unpruned model on, take the step with the least
       divergence per saved byte, of all groups and all larger pruning ratios, until the budget is met; saved bytes
       depend on the steps before. Where there are bits to choose, the bits of each layer are choices like the widths
       of groups. Then everything is measured with all other layers at 8 bits. Quantization to 8 bits alone has a
       divergence, as a small change may flip a spike, which flips others; it is subtracted from every curve.
    3. Build the network, solve the weights of all consumers again, and then re-estimate all batch norms behind them
       (passes/pruning/reestimate_batch_norm.py).

    By default channels are pruned in the order of the reconstruction criterion, so that channels that never or always
    fire are pruned first.

    Attributes:
        criterion: the importance criterion, which orders the channels of a group.
        refit: how the pruned network is refitted; curves are measured with ``readers`` where this is ``full``.
    """

    criterion: str = "reconstruction"
    refit: str = "full"
    joint = True  # where the problem has bits to choose

    def plan(self, problem: Problem) -> Plan:
        """See ``Policy``.

        Raises:
            UsageError: no data, or neither a budget nor a ``max_drop``.
            BudgetError: even the smallest widths exceed the limit, or no plan is within ``max_drop``.
        """
        problem.required_measure("auto")
        if problem.max_drop is None:
            problem.required_limit("auto")
        space, at = self._search(problem)

        def within() -> list[int]:
            return smallest(problem, space, at, self.refit, "auto")

        if problem.limit is not None:
            index = at(problem.limit)
            require(problem, space, index, within, self.refit, "auto")
        else:
            index = within()
        return self._plan(space, index)

    def ladder(self, problem: Problem) -> list[Plan]:
        """See ``Policy``: plans of several sizes."""
        space, at = self._search(problem)
        return [self._plan(space, index) for index in by_size(problem, space, at, self.refit, "auto")]

    def _plan(self, space: Space, index: list[int]) -> Plan:
        plan = space.plan(index)
        plan.provenance = {"policy": "auto", "low_rank": self.low_rank, **self.to_json()}
        return plan

    def _search(self, problem: Problem) -> tuple[Space, Callable[[int], list[int]]]:
        """Measure the curves; return the plans, and a function that returns the index of the plan for a limit."""
        space = Space(problem.program, self, problem.calibrating, problem.bits, problem.ranks)
        if problem.limit is not None:
            space.require(problem.cost, problem.limit, problem.what)
        curve_refit = "readers" if self.refit == "full" else self.refit
        enough = problem.limit is not None and problem.cost() <= problem.limit
        curves = [] if enough else sensitivity_curves(problem, space, coarse(problem, space), curve_refit, "auto")
        floor = 0.0
        if curves and problem.bits:
            measure = problem.required_measure("auto")
            floor = measure([space.plan(space.full)], curve_refit, "auto: 8 bits")[0].divergence

        return space, lambda limit: self.at(problem, space, curves, limit, floor)

    def at(
        self, problem: Problem, space: Space, curves: list[SensitivityCurve], limit: int, floor: float = 0.0
    ) -> list[int]:
        """Return the index that the knapsack finds for a limit.

        Args:
            problem: the problem.
            space: the plans.
            curves: the sensitivity curve of each choice.
            limit: the largest cost.
            floor: divergence that is part of every curve and does not depend on the choice.
        """
        index, spent = list(space.full), [0.0] * len(space.choices)
        order: list[int] = []
        steps = [interpolated(curve, floor) for curve in curves]
        while (now := space.cost(problem.cost, index)) > limit:
            best: tuple[float, int, int, float] | None = None
            for i, curve_steps in enumerate(steps):
                for at, cost in curve_steps:
                    if at >= index[i]:
                        continue
                    saved = now - space.cost(problem.cost, [*index[:i], at, *index[i + 1 :]])
                    if saved <= 0:  # a rank that channels have left no room for
                        continue
                    ratio = max(cost - spent[i], MIN_DIVERGENCE_NATS) / saved
                    if best is None or ratio < best[0]:
                        best = (ratio, i, at, cost)
            if best is None:  # the largest measured pruning ratios do not meet the budget
                left = [i for i in range(len(index)) if index[i]]
                i = max(left, key=lambda i: space.choices[i].widths[index[i]] / space.choices[i].size)
                index[i] -= 1
                continue
            _, i, at, spent[i] = best
            index[i] = at
            order.append(i)
        # raise widths again where the last steps saved more than the budget requires, the costliest steps first
        space.fill(problem.cost, index, limit, [*dict.fromkeys(reversed(order)), *range(len(index))])
        return index


def coarse(problem: Problem, space: Space) -> list[float]:
    """Return the pruning ratios to measure: of the whole ladder as many as the problem's number of evaluations allows.

    The largest ratio of a few is not that of the ladder, which few groups survive.
    """
    limit = problem.evaluations()
    points = len(LADDER) if limit is None else max(FEWEST_POINTS, limit // max(1, len(space.choices)))
    if points >= len(LADDER):
        return list(LADDER)
    positions = [round((i + 1) * len(LADDER) / (points + 0.5)) - 1 for i in range(points)]
    return [LADDER[i] for i in dict.fromkeys(positions)]


def interpolated(curve: SensitivityCurve, floor: float) -> list[tuple[int, float]]:
    """Return the (index, divergence above a floor) of all steps of the ladder that a curve reaches.

    The divergence is made non-decreasing with the pruning ratio. Between measured steps its square root is linear in
    the size, as a divergence is quadratic in a small error.
    """
    choice = curve.choice
    measured, highest = {choice.full: 0.0}, 0.0
    for at, point in curve.steps:
        highest = max(highest, point.divergence - floor)
        measured[at] = highest
    sizes = sorted(measured)
    between = [at for at in ladder(choice, LADDER) if at > sizes[0] and at not in measured]
    roots = np.interp(between, sizes, [math.sqrt(measured[at]) for at in sizes])
    every = measured | {at: float(root) ** 2 for at, root in zip(between, roots, strict=True)}
    return [(at, every[at]) for at in sorted(every, reverse=True) if at != choice.full]
