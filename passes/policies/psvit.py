"""PSViT: structured pruning of spiking vision transformers (Putra et al., arXiv 2606.03257, 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from svitc.passes.policies.ladder import by_step, refined
from svitc.passes.policies.max_drop import last, require
from svitc.passes.policies.policy import Policy
from svitc.passes.policies.problem import Problem
from svitc.passes.policies.search_space import Settings, Space
from svitc.passes.policies.sensitivity import RATES, TOLERANCE, SensitivityCurve, sensitivity_curves
from svitc.passes.policies.uniform import uniform_index
from svitc.planning.plan import Plan
from svitc.support.types import JsonDict


@dataclass
class PSViT(Settings, Policy):
    """The published steps, in one shot (without fine-tuning in between).

    The steps that the abstract states, and how they are implemented here:

    1. "uniform channel-wise filter pruning": all groups are pruned at the same, increasing ratio; the largest ratio
       whose model stays within the tolerance is the base.
    2. "sensitivity analysis of the impact of each single layer's channel-wise pruning on accuracy and on network
       size": each group is pruned alone at each ratio above the base.
    3. "fine-grained channel-wise pruning from that analysis and the given architecture": from the base on, the group
       and ratio that save the most for each point of lost accuracy are taken first, until the budget is met. The
       architecture enters through the channel groups: coupled layers are pruned together.

    The paper leaves open, and this implementation decides: the criterion (L2 norm), the pruning ratios (0.1 to 0.9),
    that a layer is a channel group, the order in step 3, and that batch norms are re-estimated only if ``refit`` says
    so.

    Attributes:
        refit: ``none``, ``batch-norm``, ``readers`` or ``full``.
    """

    refit: str = "none"

    def plan(self, problem: Problem) -> Plan:
        """See ``Policy``.

        The search assumes that accuracy losses of several groups add up. Where there is a ``max_drop``, the plan is
        measured, and steps are undone until it is within.

        Raises:
            UsageError: no data.
            BudgetError: even the smallest widths exceed the limit, or the plan loses more than ``max_drop``.
        """
        search, provenance = self._search(problem)
        plan = search.space.plan(self._within(search))
        plan.provenance = provenance
        return plan

    def ladder(self, problem: Problem) -> list[Plan]:
        """See ``Policy``: uniform pruning, and then the steps of the search."""
        search, provenance = self._search(problem)
        space = search.space
        gentler = [rate for rate in RATES if rate < provenance["uniform_rate"]]
        uniform = [[choice.at(1 - rate) for choice in space.choices] for rate in gentler]
        steps = [space.full, *uniform, *search.steps[1:]]
        plans = [space.plan(index) for index in refined(steps)]
        for plan in plans:
            plan.provenance = dict(provenance)
        return [plan for plan in by_step(problem, plans, self.refit, "psvit") if plan.keep]

    def _search(self, problem: Problem) -> tuple[_Search, JsonDict]:
        """Search, and return the steps of the search and the provenance of its plans."""
        problem.required_measure("psvit")
        space = Space(problem.program, self, problem.calibrating)
        if problem.limit is not None:
            space.require(problem.cost, problem.limit, problem.what)
        tolerance = problem.max_drop if problem.max_drop is not None else TOLERANCE
        base, rate = self._uniform(problem, space, tolerance)
        rates = [r for r in RATES if r > rate]
        enough = problem.limit is not None and space.cost(problem.cost, base) <= problem.limit
        curves = [] if enough else sensitivity_curves(problem, space, rates, self.refit, "psvit")
        search = _Search(problem, space, list(base), [space.full, list(base)], [0.0] * len(base))
        while space.cost(problem.cost, search.index) > (problem.limit or 0):
            if not search.step(curves, tolerance):
                break
        return search, {"policy": "psvit", "uniform_rate": rate, "tolerance": tolerance, **self.to_json()}

    def _uniform(self, problem: Problem, space: Space, tolerance: float) -> tuple[list[int], float]:
        """Return index and ratio of the largest uniform pruning that the tolerance allows and the limit requires."""
        measure, limit = problem.required_measure("psvit"), problem.limit or 0
        base, rate = space.full, 0.0
        for share in RATES:
            index = [choice.at(1 - share) for choice in space.choices]
            point = measure([space.plan(index)], self.refit, "uniform pruning")[0]
            problem.reporter.decide(f"uniform pruning by {share:.0%}: {100 * point.drop:.1f} points lost")
            if point.drop > tolerance:
                break
            base, rate = index, share
            if space.cost(problem.cost, base) <= limit:
                break
        if rate and space.cost(problem.cost, base) <= limit:
            base = uniform_index(space, problem)
        return base, rate

    def _within(self, search: _Search) -> list[int]:
        """Return an index that meets the limit and ``max_drop``, starting from the result of the search.

        Raises:
            BudgetError: the plan for the limit loses more than ``max_drop``.
        """
        problem, space, index = search.problem, search.space, search.index
        if problem.limit is None:
            return index if problem.max_drop is None else last(problem, space, search.steps, self.refit, "psvit")
        if space.cost(problem.cost, index) > problem.limit:  # the largest measured ratios do not meet it
            index = [min(i, j) for i, j in zip(index, uniform_index(space, problem), strict=True)]
        order = sorted(range(len(index)), key=lambda i: -search.lost[i])
        space.fill(problem.cost, index, problem.limit, order)
        require(
            problem, space, index, lambda: last(problem, space, search.steps, self.refit, "psvit"), self.refit, "psvit"
        )
        return index


@dataclass
class _Search:
    """The state of the fine-grained search.

    Attributes:
        problem: the problem.
        space: the plans.
        index: index of the current plan.
        steps: all indices so far, beginning with the unpruned plan.
        lost: estimated accuracy loss by each choice so far, a share.
        spent: sum of the accuracy losses in the fine-grained search.
    """

    problem: Problem
    space: Space
    index: list[int]
    steps: list[list[int]]
    lost: list[float]
    spent: float = 0.0

    def step(self, curves: Sequence[SensitivityCurve], tolerance: float) -> bool:
        """Take the step that saves the most for each point of lost accuracy; return False where there is none.

        Args:
            curves: the sensitivity curve of each choice.
            tolerance: the largest sum of losses, where there is no limit.
        """
        problem, space, index, lost = self.problem, self.space, self.index, self.lost
        now = space.cost(problem.cost, index)
        best = None
        for i, curve in enumerate(curves):
            for at, point in curve.steps:
                if at >= index[i]:
                    continue
                trial = [*index[:i], at, *index[i + 1 :]]
                # a measured gain, or no loss, counts as a loss of half an image
                drop = max(point.drop - lost[i], 0.5 / point.images)
                if problem.limit is None and self.spent + point.drop - lost[i] > tolerance:
                    continue
                ratio = (now - space.cost(problem.cost, trial)) / drop
                if best is None or ratio > best[0]:
                    best = (ratio, i, at, point.drop)
        if best is None:
            return False
        _, i, at, drop = best
        self.spent += drop - lost[i]
        index[i], lost[i] = at, drop
        self.steps.append(list(index))
        choice = space.choices[i]
        problem.reporter.decide(f"{choice.name}: {choice.widths[at]} of {choice.size} kept")
        return True
