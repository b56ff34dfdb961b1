"""PrimeSVT: automated, memory-aware pruning with a prioritized compression policy (Putra et al., arXiv 2606.03428, 2026)."""

from __future__ import annotations

from dataclasses import dataclass

from svitc.errors import BudgetError
from svitc.ir.graph import attribute_of
from svitc.passes.policies.problem import Problem
from svitc.passes.policies.search_space import BitChoice, Choice, Settings, Space
from svitc.passes.policies.sensitivity import RATES, TOLERANCE
from svitc.planning.plan import Plan


@dataclass
class PrimeSVT(Settings):
    """The published steps, automated and in one shot.

    Stated by the abstract, and what each became:

    1. "sorts layers by size (number of parameters)": groups by the parameters of the layers that produce them.
    2. "identifies target layers by their robustness under different pruning rates": a group is a target if it
       alone, at the lowest rate, stays within the tolerance.
    3. "compresses layer by layer from the largest to the smallest, considering the user's constraints": each
       target on top of what is cut already, at every rate; of the rates that stay within the tolerance, that
       with the highest accuracy times memory saved (as reported of the paper). It stops once the memory target
       is met, with the last group cut no further than that takes.
    4. "in each layer, channel-wise filter pruning by L2 norm": the default criterion.

    Left open by the paper and decided here: the rates (0.1 to 0.9), what counts as robust, a layer being a channel
    group, and no batch-norm re-estimation unless ``refit`` asks for it.

    Attributes:
        refit: ``none``, ``batch-norm``, ``readers`` or ``full``.
    """

    refit: str = "none"

    def plan(self, problem: Problem) -> Plan:
        """The plan.

        Raises:
            UsageError: no data.
            BudgetError: the memory target cannot be met within the tolerance; says the best that was found.
        """
        measure = problem.required_measure("primesvt")
        space = Space(problem.program, self, problem.calibrating)
        tolerance = problem.max_drop if problem.max_drop is not None else TOLERANCE
        limit = problem.limit or 0
        if problem.limit is not None:
            space.require(problem.cost, limit, problem.what)
        order = sorted(range(len(space.choices)), key=lambda i: (-_parameters(problem, space.choices[i]), i))
        index = list(space.full)
        problem.say(f"largest layer first, at most {len(RATES)} evaluations each")
        robust = self._robust(problem, space, order, tolerance)
        whole, last = problem.cost(), measure.original
        for i in robust:
            if space.cost(problem.cost, index) <= limit:
                break
            choice = space.choices[i]
            steps = list(dict.fromkeys(at for r in RATES if (at := choice.at(1 - r)) < choice.full))
            trials = [[*index[:i], at, *index[i + 1 :]] for at in steps]
            # the lowest rate that meets the target is the last one worth measuring
            enough = next((n + 1 for n, t in enumerate(trials) if space.cost(problem.cost, t) <= limit), len(trials))
            trials = trials[:enough]
            points = measure([space.plan(t) for t in trials], self.refit, f"largest first: {choice.name}")
            fits = [(t, p) for t, p in zip(trials, points, strict=True) if p.drop <= tolerance]
            if not fits:
                problem.say(f"{choice.name}: kept whole, every rate loses too much")
                continue
            index, last = max(fits, key=lambda c: c[1].accuracy * (1 - space.cost(problem.cost, c[0]) / whole))
            problem.say(
                f"{choice.name}: {choice.widths[index[i]]} of {choice.size} kept, {100 * last.drop:.1f} points lost"
            )
        reached = space.cost(problem.cost, index)
        if problem.limit is not None and reached > limit:
            raise BudgetError(
                f"within {100 * tolerance:g} points primesvt keeps {reached / whole:.2%}, not the {limit / whole:.2%} asked for"
                f" ({100 * last.drop:.1f} points lost there)",
                hint="Allow more with --max-drop, ask for less, add --refit batch-norm, or use --policy auto.",
            )
        if problem.limit is not None:
            space.fill(problem.cost, index, limit, list(reversed(order)))
        plan = space.plan(index)
        plan.provenance = {"policy": "primesvt", "tolerance": tolerance, **self.to_json()}
        return plan

    def _robust(self, problem: Problem, space: Space, order: list[int], tolerance: float) -> list[int]:
        measure = problem.required_measure("primesvt")
        plans = [space.plan([*space.full[:i], space.choices[i].at(1 - RATES[0]), *space.full[i + 1 :]]) for i in order]
        problem.announce(plans, self.refit, f"robustness of {len(order)} groups")
        points = measure(plans, self.refit, "robustness")
        for i, point in zip(order, points, strict=True):
            if point.drop > tolerance:
                problem.say(f"{space.choices[i].name}: no target, {100 * point.drop:.1f} points lost at {RATES[0]:.0%}")
        return [i for i, point in zip(order, points, strict=True) if point.drop <= tolerance]


def _parameters(problem: Problem, choice: Choice | BitChoice) -> int:
    """Parameters of the layers that produce a choice's channels."""
    assert isinstance(choice, Choice)  # this policy's space has no others
    names = {m.module + (f".{m.param}" if m.param else "") for g in choice.groups for m in g.members if m.produces}
    return sum(attribute_of(problem.program.module, name).numel() for name in names)
