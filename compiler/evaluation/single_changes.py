"""Measurements of plans that change one thing alone: a channel group, or the bits of a layer.

They are the sensitivity curves that a policy has measured on its way, for the report.
"""

from __future__ import annotations

from svitc.evaluation.evaluator import Measurement
from svitc.planning.plan import Plan
from svitc.support.types import JsonDict


class SingleChanges:
    """Keeps the measurements of plans that change one channel group, or the bits of one layer, and nothing else.

    Attributes:
        channels: (group, refit) -> channels kept -> its measurement.
        sizes: group -> all its channels.
        bits: layer -> bits -> its measurement, where all other layers have the most bits.
    """

    def __init__(self) -> None:
        self.channels: dict[tuple[str, str], dict[int, Measurement]] = {}
        self.sizes: dict[str, int] = {}
        self.bits: dict[str, dict[int, Measurement]] = {}

    def add(self, plan: Plan, refit: str, point: Measurement) -> None:
        """Keep a measurement, if the plan changes one thing alone."""
        if plan.ranks:
            return
        pruned = [name for name, mask in plan.keep.items() if not mask.all()]
        most = max(plan.bits.values(), default=0)
        narrow = [name for name, bits in plan.bits.items() if bits < most]
        if len(pruned) == 1 and not narrow:
            (name,) = pruned
            self.sizes[name] = plan.keep[name].size
            self.channels.setdefault((name, refit), {})[int(plan.keep[name].sum())] = point
        elif len(narrow) == 1 and not pruned:
            (name,) = narrow
            self.bits.setdefault(name, {})[plan.bits[name]] = point

    def curves(self) -> list[JsonDict]:
        """Return a row for each channel group, with the refit of which most was measured."""
        best: dict[str, tuple[str, dict[int, Measurement]]] = {}
        for (name, refit), points in self.channels.items():
            if name not in best or len(points) > len(best[name][1]):
                best[name] = refit, points
        return [
            {
                "group": name,
                "size": self.sizes[name],
                "refit": refit,
                "points": [{"kept": kept, **_drop(point)} for kept, point in sorted(points.items(), reverse=True)],
            }
            for name, (refit, points) in best.items()
        ]

    def bit_curves(self) -> list[JsonDict]:
        """Return a row for each layer."""
        return [
            {"layer": name, "points": [{"bits": bits, **_drop(points[bits])} for bits in sorted(points, reverse=True)]}
            for name, points in self.bits.items()
        ]


def _drop(point: Measurement) -> JsonDict:
    values = point.to_json()
    return {"drop": values["drop"], "drop_interval": list(values["drop_interval"])}


__all__ = ["SingleChanges"]
