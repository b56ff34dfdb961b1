"""The gate: which settings of bits are not worth measuring on all images (AQ4SViT, arXiv 2606.15523)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from svitc.passes.policies.bitwidth.search_space import Bits, BitSpace
from svitc.support.confidence import paired


@dataclass
class DriftGate:
    """Judges settings by their drift, then on a mini-batch, and only then on all images.

    The paper states a gate on the drift of membrane potentials and, as reported, a mini-batch before the full data. Open,
    and decided here: the bound is the least drift of any setting that so far lost too much even at the lower end of its
    95% interval, but never below the most that one within the tolerance had; a mini-batch turns away by the same rule. (A
    bound from whatever lost too much was tried: what one setting lost by chance then turned away nearly all others.)

    Attributes:
        images: of the mini-batch.
        on: without it everything is measured on all images.
        turned, glanced, full: how many settings the drift turned away, the mini-batch did, and were measured fully.
    """

    space: BitSpace
    images: int = 300
    on: bool = True
    turned: int = 0
    glanced: int = 0
    full: int = 0
    _most: float = 0.0
    _least: float = math.inf
    _seen: dict[tuple[int, ...], Any] = field(default_factory=dict)

    @property
    def bound(self) -> float:
        return max(self._least, self._most)

    def drift(self, bits: Bits) -> float:
        return float(self.space.measure.drift(self.space.plan(bits)))

    def passes(self, bits: Bits) -> bool:
        """Whether a setting is worth measuring on all images."""
        if not self.on:
            return True
        known = self._seen.get(tuple(bits.values()))
        if known is not None:
            return bool(known.drop <= self.space.tolerance)
        drift = self.drift(bits)
        if drift > self.bound:
            self.turned += 1
            return False
        point = self.glance(bits)
        low, _ = paired(point.lost, point.gained, point.images)
        if low > self.space.tolerance:
            self.glanced += 1
            self._least = min(self._least, drift)
            return False
        return True

    def glance(self, bits: Bits) -> Any:
        """Measured on the mini-batch."""
        return self.space.measure.glance(self.space.plan(bits), self.images)

    def within(self, bits: Bits, stage: str) -> bool:
        """Whether a setting stays inside the tolerance on all images."""
        key = tuple(bits.values())
        if key not in self._seen:
            self.full += 1
            self._seen[key] = self.space.points([bits], stage)[0]
            drop = self._seen[key].drop
            self.space.problem.reporter.decide(
                f"{self.space.cost(bits) / self.space.cost(self.space.widest):.1%} of the int8 bytes: {100 * drop:.1f} points lost"
            )
            if self.on:
                drift = self.drift(bits)
                low, _ = paired(self._seen[key].lost, self._seen[key].gained, self._seen[key].images)
                if drop <= self.space.tolerance:
                    self._most = max(self._most, drift)
                elif low > self.space.tolerance:
                    self._least = min(self._least, drift)
        return bool(self._seen[key].drop <= self.space.tolerance)

    def to_json(self) -> dict[str, int]:
        return {"turned_away": self.turned, "by_mini_batch": self.glanced, "full_evaluations": self.full}


__all__ = ["DriftGate"]
