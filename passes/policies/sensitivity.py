"""Sensitivity: accuracy and size against the pruning rate, for each choice alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from svitc.passes.policies.problem import Problem
from svitc.passes.policies.search_space import BitChoice, Choice, Space

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # the published policies'
TOLERANCE = 0.03  # both papers' own drop without fine-tuning: 73.3 -> 70.3
LADDER = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.9375, 0.96875)
HOPELESS = 0.30  # accuracy lost by one choice alone, beyond which its higher rates are not measured


@dataclass
class SensitivityCurve:
    """What pruning one choice costs, all else whole.

    Attributes:
        choice: which.
        steps: (index into its widths, what was measured there), from the first cut on; the whole is not in it.
    """

    choice: Choice | BitChoice
    steps: list[tuple[int, Any]] = field(default_factory=list)


def ladder(choice: Choice | BitChoice, rates: Sequence[float]) -> list[int]:
    """Indices into a choice's widths for the rates, without those that cut nothing, or the same twice."""
    found = dict.fromkeys(choice.at(1 - rate) for rate in rates)
    return [index for index in found if index != choice.full]


def sensitivity_curves(
    problem: Problem, space: Space, rates: Sequence[float], refit: str, policy: str
) -> list[SensitivityCurve]:
    """Measure each choice alone, rate by rate; a choice that is lost is not cut further.

    One rate of all choices is one batch, which ranks share.
    """
    measure = problem.required_measure(policy)
    found = [SensitivityCurve(choice) for choice in space.choices]
    steps = [ladder(choice, rates) for choice in space.choices]
    every = [space.plan([*space.full[:i], at, *space.full[i + 1 :]]) for i, own in enumerate(steps) for at in own]
    problem.announce(every, refit, f"sensitivity of {len(found)} groups at {len(rates)} rates")
    alive = set(range(len(found)))
    for at in range(max(map(len, steps), default=0)):
        wave = [i for i in sorted(alive) if at < len(steps[i])]
        plans = []
        for i in wave:
            index = list(space.full)
            index[i] = steps[i][at]
            plans.append(space.plan(index))
        for i, point in zip(wave, measure(plans, refit, f"sensitivity {at + 1}/{len(rates)}"), strict=True):
            found[i].steps.append((steps[i][at], point))
            if point.drop > HOPELESS:
                alive.discard(i)
    return found


def to_json(problem: Problem, space: Space, found: Sequence[SensitivityCurve]) -> list[dict[str, Any]]:
    """Curves as JSON values: one entry a choice, with what each step keeps."""
    whole = problem.cost()
    rows = []
    for i, curve in enumerate(found):
        entry: dict[str, Any] = {
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
                    "saved": 1 - kept / whole,
                    **point.to_json(),
                }
            )
        rows.append(entry)
    return rows
