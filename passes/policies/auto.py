"""The automatic policy: all rates chosen at once, from what each channel's loss costs after its readers made up for it."""

from __future__ import annotations

from dataclasses import dataclass

from svitc.passes.policies.max_drop import require, smallest
from svitc.passes.policies.problem import Problem
from svitc.passes.policies.search_space import Settings, Space
from svitc.passes.policies.sensitivity import LADDER, SensitivityCurve, sensitivity_curves
from svitc.planning.plan import Plan

GUARD = 1e-4  # nats; a difference of two divergences below it is noise


@dataclass
class Auto(Settings):
    """A knapsack over measured curves.

    1. Each group alone, at each rate of a ladder, with the readers of what is left re-solved in closed form
       (passes/refit_readers.py): the divergence of the class probabilities from the original's, which is smoother
       than accuracy on as many images.
    2. Divergences of several cuts are taken to add up. From the whole model, again and again the step that costs
       the least divergence for each byte is taken, of all groups and all rates below the present one, with bytes
       as they are after the steps before it, until the budget is met. Where there are bits to choose they are choices
       like the groups; everything is then measured with all else at 8 bits, whose own divergence, since the least
       change flips spikes that flip others, is taken off every curve.
    3. The network is built with the readers of all cuts re-solved, and then all batch norms behind them re-estimated
       (passes/reestimate_batch_norm.py).

    Channels go in the order of the reconstruction criterion, so that silent and always-firing ones go first.

    Attributes:
        criterion: which channels of a group go first.
        refit: of the network that is built; its curves use ``readers`` where this is ``full``.
    """

    criterion: str = "reconstruction"
    refit: str = "full"
    joint = True  # where the problem has bits to choose

    def plan(self, problem: Problem) -> Plan:
        """The plan.

        Raises:
            UsageError: no data, or neither a budget nor a drop.
            BudgetError: even the smallest widths exceed the limit, or no plan stays within the drop.
        """
        problem.required_measure("auto")
        if problem.max_drop is None:
            problem.required_limit("auto")
        space = Space(problem.program, self, problem.calibrating, problem.bits)
        if problem.limit is not None:
            space.require(problem.cost, problem.limit, problem.what)
        alone = "readers" if self.refit == "full" else self.refit
        enough = problem.limit is not None and problem.cost() <= problem.limit
        found = [] if enough else sensitivity_curves(problem, space, LADDER, alone, "auto")
        floor = 0.0
        if found and problem.bits:
            floor = problem.required_measure("auto")([space.plan(space.full)], alone, "auto: 8 bits")[0].divergence

        def at(limit: int) -> list[int]:
            return self.at(problem, space, found, limit, floor)

        def within() -> list[int]:
            return smallest(problem, space, at, self.refit, "auto")

        if problem.limit is not None:
            index = at(problem.limit)
            require(problem, space, index, within, self.refit, "auto")
        else:
            index = within()
        plan = space.plan(index)
        plan.provenance = {"policy": "auto", **self.to_json()}
        return plan

    def at(
        self, problem: Problem, space: Space, found: list[SensitivityCurve], limit: int, floor: float = 0.0
    ) -> list[int]:
        """The index that the knapsack gives for a limit.

        Args:
            floor: divergence that every curve has in it and that no choice adds to.
        """
        index, spent = list(space.full), [0.0] * len(space.choices)
        order: list[int] = []
        steps = [_monotone(curve, floor) for curve in found]
        while (now := space.cost(problem.cost, index)) > limit:
            best: tuple[float, int, int, float] | None = None
            for i, own in enumerate(steps):
                for at, cost in own:
                    if at >= index[i]:
                        continue
                    saved = now - space.cost(problem.cost, [*index[:i], at, *index[i + 1 :]])
                    ratio = max(cost - spent[i], GUARD) / saved
                    if best is None or ratio < best[0]:
                        best = (ratio, i, at, cost)
            if best is None:  # the measured rates end before the budget does
                left = [i for i in range(len(index)) if index[i]]
                i = max(left, key=lambda i: space.choices[i].widths[index[i]] / space.choices[i].size)
                index[i] -= 1
                continue
            _, i, at, spent[i] = best
            index[i] = at
            order.append(i)
        # give back what the last steps took too much, the dearest first
        space.fill(problem.cost, index, limit, [*dict.fromkeys(reversed(order)), *range(len(index))])
        return index


def _monotone(curve: SensitivityCurve, floor: float) -> list[tuple[int, float]]:
    """(index, divergence beyond a floor) of a curve, never falling as more goes."""
    highest, steps = 0.0, []
    for at, point in curve.steps:
        highest = max(highest, point.divergence - floor)
        steps.append((at, highest))
    return steps
