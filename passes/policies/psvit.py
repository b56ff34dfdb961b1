"""PSViT: structured pruning of spiking vision transformers (Putra et al., arXiv 2606.03257, 2026)."""

from __future__ import annotations

from dataclasses import dataclass

from svitc.passes.policies.max_drop import last, require
from svitc.passes.policies.problem import Problem
from svitc.passes.policies.search_space import Settings, Space
from svitc.passes.policies.sensitivity import RATES, TOLERANCE, sensitivity_curves
from svitc.passes.policies.uniform import uniform_index
from svitc.planning.plan import Plan


@dataclass
class PSViT(Settings):
    """The published steps, in one shot.

    Stated by the abstract, and what each became:

    1. "uniform channel-wise filter pruning": every group at each rate of a ladder; the largest rate whose model
       stays within the tolerance is the base.
    2. "sensitivity analysis of the impact of each single layer's channel-wise pruning on accuracy and on network
       size": each group alone at each rate above the base.
    3. "fine-grained channel-wise pruning from that analysis and the given architecture": from the base, the group
       and rate that save the most for each point lost go first, until the budget is met. The architecture comes
       in through the channel groups: what a layer is coupled with is cut with it.

    Left open by the paper and decided here: the criterion (L2 norm), the ladder (0.1 to 0.9), a layer being a
    channel group, the order in step 3, and no batch-norm re-estimation unless ``refit`` asks for it.

    Attributes:
        refit: ``none``, ``batch-norm``, ``readers`` or ``full``.
    """

    refit: str = "none"

    def plan(self, problem: Problem) -> Plan:
        """The plan.

        Losses of several cuts are taken to add up; where the user allows no more than a drop, the plan is measured,
        and steps are taken back until it is within.

        Raises:
            UsageError: no data.
            BudgetError: even the smallest widths exceed the limit, or the plan loses more than the user allows.
        """
        measure = problem.required_measure("psvit")
        space = Space(problem.program, self, problem.calibrating)
        limit = 0 if problem.limit is None else problem.limit
        if problem.limit is not None:
            space.require(problem.cost, limit, problem.what)
        tolerance = problem.max_drop if problem.max_drop is not None else TOLERANCE
        base, rate = space.full, 0.0
        for share in RATES:
            index = [choice.at(1 - share) for choice in space.choices]
            point = measure([space.plan(index)], self.refit, "uniform pruning")[0]
            problem.say(f"uniform pruning by {share:.0%}: {100 * point.drop:.1f} points lost")
            if point.drop > tolerance:
                break
            base, rate = index, share
            if space.cost(problem.cost, base) <= limit:
                break
        if rate and space.cost(problem.cost, base) <= limit:
            base = uniform_index(space, problem)
        rates = [r for r in RATES if r > rate]
        enough = problem.limit is not None and space.cost(problem.cost, base) <= limit
        found = [] if enough else sensitivity_curves(problem, space, rates, self.refit, "psvit")
        index, spent = list(base), 0.0
        steps = [space.full, list(base)]
        lost = [0.0] * len(index)
        while space.cost(problem.cost, index) > limit:
            now = space.cost(problem.cost, index)
            best = None
            for i, curve in enumerate(found):
                for at, point in curve.steps:
                    if at >= index[i]:
                        continue
                    trial = [*index[:i], at, *index[i + 1 :]]
                    # half an image is what a measured gain, or no loss at all, is taken for
                    drop = max(point.drop - lost[i], 0.5 / point.images)
                    if problem.limit is None and spent + point.drop - lost[i] > tolerance:
                        continue
                    ratio = (now - space.cost(problem.cost, trial)) / drop
                    if best is None or ratio > best[0]:
                        best = (ratio, i, at, point.drop)
            if best is None:
                break
            _, i, at, drop = best
            spent += drop - lost[i]
            index[i], lost[i] = at, drop
            steps.append(list(index))
            problem.say(f"{space.choices[i].name}: {space.choices[i].widths[at]} of {space.choices[i].size} kept")
        if problem.limit is not None:
            if space.cost(problem.cost, index) > limit:  # the measured rates end before the budget does
                index = [min(i, j) for i, j in zip(index, uniform_index(space, problem), strict=True)]
            order = sorted(range(len(index)), key=lambda i: -lost[i])
            space.fill(problem.cost, index, limit, order)
            require(
                problem, space, index, lambda: last(problem, space, steps, self.refit, "psvit"), self.refit, "psvit"
            )
        elif problem.max_drop is not None:
            index = last(problem, space, steps, self.refit, "psvit")
        plan = space.plan(index)
        plan.provenance = {"policy": "psvit", "uniform_rate": rate, "tolerance": tolerance, **self.to_json()}
        return plan
