"""Sensitivity curves: accuracy and size by the pruning ratio of each choice alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from svitc.passes.policies.problem import MeasuredAccuracy, Problem
from svitc.passes.policies.search_space import AnyChoice, BitChoice, Choice, RankChoice, Space
from svitc.support import human
from svitc.support.types import JsonDict

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # pruning ratios of the published policies
TOLERANCE = 0.03  # drop in accuracy that both papers report without fine-tuning: 73.3 -> 70.3
LADDER = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.9375, 0.96875)  # pruning ratios of the automatic policy
MAX_DROP_ALONE = 0.30  # if one choice alone loses more accuracy, its larger pruning ratios are not measured


@dataclass
class SensitivityCurve:
    """Measurements of one choice at several sizes, with all other choices at their original sizes.

    Attributes:
        choice: the choice.
        steps: (index into its widths, measurement), from the smallest pruning ratio on, without the original size.
    """

    choice: AnyChoice
    steps: list[tuple[int, MeasuredAccuracy]] = field(default_factory=list)


def ladder(choice: AnyChoice, rates: Sequence[float]) -> list[int]:
    """Return the distinct indices into a choice's widths for pruning ratios, without that of the original size."""
    indices = dict.fromkeys(choice.at(1 - rate) for rate in rates)
    return [index for index in indices if index != choice.full]


def sensitivity_curves(
    problem: Problem, space: Space, rates: Sequence[float], refit: str, policy: str
) -> list[SensitivityCurve]:
    """Measure each choice alone, at increasing pruning ratios while its drop is at most ``MAX_DROP_ALONE``.

    All choices at the same step form one batch, which is shared by the ranks.

    Args:
        problem: the problem, with data.
        space: the plans.
        rates: pruning ratios, ascending.
        refit: how pruned networks are refitted.
        policy: name of the policy, for messages.

    Returns:
        The curve of each choice, in the order of ``space.choices``.
    """
    measure = problem.required_measure(policy)
    curves = [SensitivityCurve(choice) for choice in space.choices]
    steps = [ladder(choice, rates) for choice in space.choices]
    plans = [space.plan([*space.full[:i], at, *space.full[i + 1 :]]) for i, curve in enumerate(steps) for at in curve]
    problem.announce(plans, refit, f"sensitivity of {_counted(space.choices)} at {human.counted(len(rates), 'rate')}")
    remaining = set(range(len(curves)))
    for step in range(max(map(len, steps), default=0)):
        measured = [i for i in sorted(remaining) if step < len(steps[i])]
        plans = []
        for i in measured:
            index = list(space.full)
            index[i] = steps[i][step]
            plans.append(space.plan(index))
        for i, point in zip(measured, measure(plans, refit, f"sensitivity {step + 1}/{len(rates)}"), strict=True):
            curves[i].steps.append((steps[i][step], point))
            if point.drop > MAX_DROP_ALONE:
                remaining.discard(i)
    return curves


def _counted(choices: Sequence[AnyChoice]) -> str:
    """Return how many choices there are of each kind: ``10 groups and the ranks of 2 layers``."""
    groups, bits, ranks = (
        sum(isinstance(choice, kind) for choice in choices) for kind in (Choice, BitChoice, RankChoice)
    )
    parts = [human.counted(groups, "group")]
    parts += [f"the bits of {human.counted(bits, 'layer')}"] * bool(bits)
    parts += [f"the {human.agree(ranks, 'rank', 'ranks')} of {human.counted(ranks, 'layer')}"] * bool(ranks)
    return " and ".join(parts)


def to_json(problem: Problem, space: Space, curves: Sequence[SensitivityCurve]) -> list[JsonDict]:
    """Return curves as JSON values: one entry per choice, with size and accuracy at each step."""
    full_cost = problem.cost()
    rows = []
    for i, curve in enumerate(curves):
        entry: JsonDict = {
            "group": curve.choice.name,
            "size": curve.choice.size,
            "heads": curve.choice.heads,
            "steps": [],
        }
        for at, point in curve.steps:
            index = list(space.full)
            index[i] = at
            kept = space.cost(problem.cost, index)
            entry["steps"].append(
                {
                    "width": curve.choice.widths[at],
                    "rate": 1 - curve.choice.widths[at] / curve.choice.size,
                    problem.what: kept,
                    "saved": 1 - kept / full_cost,
                    **point.to_json(),
                }
            )
        rows.append(entry)
    return rows
