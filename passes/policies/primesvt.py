"""PrimeSVT: automated, memory-aware pruning with a prioritized policy (Putra et al., arXiv 2606.03428, 2026)."""

from __future__ import annotations

from dataclasses import dataclass

from svitc.errors import BudgetError
from svitc.ir.graph import attribute_of
from svitc.passes.policies.ladder import by_step, refined
from svitc.passes.policies.policy import Policy
from svitc.passes.policies.problem import MeasuredAccuracy, Problem
from svitc.passes.policies.search_space import AnyChoice, Choice, Settings, Space
from svitc.passes.policies.sensitivity import RATES, TOLERANCE
from svitc.planning.plan import Plan
from svitc.support import human


@dataclass
class PrimeSVT(Settings, Policy):
    """The published steps, automated and in one shot (without fine-tuning in between).

    The steps that the abstract states, and how they are implemented here:

    1. "sorts layers by size (number of parameters)": groups are sorted by the parameters of the layers that produce
       them.
    2. "identifies target layers by their robustness under different pruning rates": a group is a target if pruning it
       alone, at the smallest ratio, stays within the tolerance.
    3. "compresses layer by layer from the largest to the smallest, considering the user's constraints": each target is
       pruned at every ratio, in addition to those before it. Of the ratios within the tolerance, the one with the
       highest accuracy times saved memory is taken (as others report of the paper). Pruning stops once the memory
       target is met, and the last group is pruned no further than necessary.
    4. "in each layer, channel-wise filter pruning by L2 norm": the default criterion.

    The paper leaves open, and this implementation decides: the pruning ratios (0.1 to 0.9), the definition of a robust
    layer, that a layer is a channel group, and that batch norms are re-estimated only if ``refit`` says so.

    Attributes:
        refit: ``none``, ``batch-norm``, ``readers`` or ``full``.
    """

    refit: str = "none"

    def plan(self, problem: Problem) -> Plan:
        """See ``Policy``.

        Raises:
            UsageError: no data.
            BudgetError: the memory target cannot be met within the tolerance; the message has the best that was found.
        """
        space = Space(problem.program, self, problem.calibrating)
        limit = problem.limit or 0
        if problem.limit is not None:
            space.require(problem.cost, limit, problem.what)
        steps, order, current = self._search(problem, space)
        index, full_cost, tolerance = list(steps[-1]), problem.cost(), _tolerance(problem)
        reached = space.cost(problem.cost, index)
        if problem.limit is not None and reached > limit:
            raise BudgetError(
                f"within {100 * tolerance:g} points primesvt keeps {reached / full_cost:.2%}, not the "
                f"{limit / full_cost:.2%} asked for"
                f" ({100 * current.drop:.1f} points lost there)",
                hint="Allow more with --max-drop, ask for less, add --refit batch-norm, or use --policy auto.",
            )
        if problem.limit is not None:
            space.fill(problem.cost, index, limit, list(reversed(order)))
        return self._plan(space, index, tolerance)

    def ladder(self, problem: Problem) -> list[Plan]:
        """See ``Policy``: the steps of the search."""
        space = Space(problem.program, self, problem.calibrating)
        steps = self._search(problem, space)[0]
        plans = [self._plan(space, index, _tolerance(problem)) for index in refined(steps)]
        return [plan for plan in by_step(problem, plans, self.refit, "primesvt") if plan.keep]

    def _plan(self, space: Space, index: list[int], tolerance: float) -> Plan:
        plan = space.plan(index)
        plan.provenance = {"policy": "primesvt", "tolerance": tolerance, **self.to_json()}
        return plan

    def _search(self, problem: Problem, space: Space) -> tuple[list[list[int]], list[int], MeasuredAccuracy]:
        """Prune the targets one after the other.

        Returns:
            The indices on the way, the first of the whole network; the choices from the largest to the smallest; and
            the accuracy at the last index.
        """
        measure, limit, tolerance = problem.required_measure("primesvt"), problem.limit or 0, _tolerance(problem)
        order = sorted(range(len(space.choices)), key=lambda i: (-_parameters(problem, space.choices[i]), i))
        index = list(space.full)
        taken = [index]
        problem.reporter.decide(f"largest layer first, at most {len(RATES)} evaluations each")
        robust = self._robust(problem, space, order, tolerance)
        full_cost, current = problem.cost(), measure.original
        for i in robust:
            if space.cost(problem.cost, index) <= limit:
                break
            choice = space.choices[i]
            steps = list(dict.fromkeys(at for r in RATES if (at := choice.at(1 - r)) < choice.full))
            trials = [[*index[:i], at, *index[i + 1 :]] for at in steps]
            # ratios above the smallest one that meets the target need not be measured
            count = next((n + 1 for n, t in enumerate(trials) if space.cost(problem.cost, t) <= limit), len(trials))
            trials = trials[:count]
            points = measure([space.plan(t) for t in trials], self.refit, f"largest first: {choice.name}")
            fits = [(t, p) for t, p in zip(trials, points, strict=True) if p.drop <= tolerance]
            if not fits:
                problem.reporter.decide(f"{choice.name}: kept whole, every rate loses too much")
                continue
            index, current = max(fits, key=lambda c: c[1].accuracy * (1 - space.cost(problem.cost, c[0]) / full_cost))
            taken.append(index)
            problem.reporter.decide(
                f"{choice.name}: {choice.widths[index[i]]} of {choice.size} kept, {100 * current.drop:.1f} points lost"
            )
        return taken, order, current

    def _robust(self, problem: Problem, space: Space, order: list[int], tolerance: float) -> list[int]:
        """Return the choices that alone, at the smallest pruning ratio, stay within the tolerance."""
        measure = problem.required_measure("primesvt")
        plans = [space.plan([*space.full[:i], space.choices[i].at(1 - RATES[0]), *space.full[i + 1 :]]) for i in order]
        problem.announce(plans, self.refit, f"robustness of {human.counted(len(order), 'group')}")
        points = measure(plans, self.refit, "robustness")
        for i, point in zip(order, points, strict=True):
            if point.drop > tolerance:
                problem.reporter.decide(
                    f"{space.choices[i].name}: no target, {100 * point.drop:.1f} points lost at {RATES[0]:.0%}"
                )
        return [i for i, point in zip(order, points, strict=True) if point.drop <= tolerance]


def _tolerance(problem: Problem) -> float:
    return problem.max_drop if problem.max_drop is not None else TOLERANCE


def _parameters(problem: Problem, choice: AnyChoice) -> int:
    """Return the number of parameters of the layers that produce a choice's channels."""
    assert isinstance(choice, Choice)  # the space has no other choices, as it was built without bits and ranks
    names = {m.module + (f".{m.param}" if m.param else "") for g in choice.groups for m in g.members if m.produces}
    return sum(attribute_of(problem.program.module, name).numel() for name in names)
