"""The drift gate: rejects settings of bits without measuring them on all images (AQ4SViT, arXiv 2606.15523)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from svitc.passes.policies.bitwidth.search_space import Bits, BitSpace
from svitc.passes.policies.problem import MeasuredAccuracy
from svitc.support.confidence import paired


@dataclass
class DriftGate:
    """Tests settings by their drift, then on a mini-batch, and only then on all images.

    The paper states a gate on the drift of membrane potentials and, as others report, a mini-batch before the full
    data. It leaves the bound open. Here the bound is the smallest drift of a setting whose lost accuracy exceeds the
    tolerance even at the lower end of its 95% interval, but at least the largest drift of a setting within the
    tolerance. The mini-batch rejects settings by the same interval. (With a bound from all settings that exceeded the
    tolerance, one chance loss rejected nearly all other settings.)

    Attributes:
        space: the settings.
        images: number of images in the mini-batch.
        on: whether settings are tested; if not, all are measured on all images.
        by_drift: number of settings that were rejected by their drift.
        by_mini_batch: number of settings that were rejected on the mini-batch.
        measured: number of settings that were measured on all images.
    """

    space: BitSpace
    images: int = 300
    on: bool = True
    by_drift: int = 0
    by_mini_batch: int = 0
    measured: int = 0
    _max_accepted_drift: float = 0.0
    _min_rejected_drift: float = math.inf
    _seen: dict[tuple[int, ...], MeasuredAccuracy] = field(default_factory=dict)

    @property
    def bound(self) -> float:
        """The largest drift that passes."""
        return max(self._min_rejected_drift, self._max_accepted_drift)

    def drift(self, bits: Bits) -> float:
        """Return the drift of a setting, in thresholds."""
        return float(self.space.measure.drift(self.space.plan(bits)))

    def passes(self, bits: Bits) -> bool:
        """Return whether a setting should be measured on all images."""
        if not self.on:
            return True
        result = self._seen.get(tuple(bits.values()))
        if result is not None:
            return bool(result.drop <= self.space.tolerance)
        drift = self.drift(bits)
        if drift > self.bound:
            self.by_drift += 1
            return False
        point = self.glance(bits)
        low, _ = paired(point.lost, point.gained, point.images)
        if low > self.space.tolerance:
            self.by_mini_batch += 1
            self._min_rejected_drift = min(self._min_rejected_drift, drift)
            return False
        return True

    def glance(self, bits: Bits) -> MeasuredAccuracy:
        """Measure a setting on the mini-batch."""
        return self.space.measure.glance(self.space.plan(bits), self.images)

    def within(self, bits: Bits, stage: str) -> bool:
        """Measure a setting on all images, and return whether it is within the tolerance."""
        key = tuple(bits.values())
        if key not in self._seen:
            self.measured += 1
            self._seen[key] = self.space.points([bits], stage)[0]
            drop = self._seen[key].drop
            self.space.problem.reporter.decide(
                f"{self.space.cost(bits) / self.space.cost(self.space.widest):.1%} of the int8 bytes:"
                f" {100 * drop:.1f} points lost"
            )
            if self.on:
                drift = self.drift(bits)
                low, _ = paired(self._seen[key].lost, self._seen[key].gained, self._seen[key].images)
                if drop <= self.space.tolerance:
                    self._max_accepted_drift = max(self._max_accepted_drift, drift)
                elif low > self.space.tolerance:
                    self._min_rejected_drift = min(self._min_rejected_drift, drift)
        return bool(self._seen[key].drop <= self.space.tolerance)

    def to_json(self) -> dict[str, int]:
        """Return the counts of settings, as JSON values."""
        return {"turned_away": self.by_drift, "by_mini_batch": self.by_mini_batch, "full_evaluations": self.measured}


__all__ = ["DriftGate"]
