"""The problem that a policy solves: a program, a limit of its cost, and a way to measure plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from svitc.analysis.calibration import Calibration
from svitc.errors import UsageError
from svitc.ir.program import Program
from svitc.planning.cost import Cost
from svitc.planning.plan import Plan
from svitc.support.human import duration
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict


class MeasuredAccuracy(Protocol):
    """The measured accuracy of a plan, as ``svitc.evaluation.evaluator.Measurement`` has it."""

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, a share."""
        ...

    @property
    def drop(self) -> float:
        """Accuracy lost compared with the original, a share."""
        ...

    @property
    def images(self) -> int:
        """Number of images that it was measured on."""
        ...

    @property
    def lost(self) -> int:
        """Number of images that only the original classifies correctly."""
        ...

    @property
    def gained(self) -> int:
        """Number of images that only the plan's network classifies correctly."""
        ...

    @property
    def divergence(self) -> float:
        """Mean Kullback-Leibler divergence of the class probabilities from the original's, in nats."""
        ...

    @property
    def expected_drop(self) -> float:
        """The drop that is to be expected on other images, a smooth figure."""
        ...

    def to_json(self) -> JsonDict:
        """Return JSON values."""
        ...


class Measure(Protocol):
    """Measures plans, as ``svitc.evaluation.sweep.Sweep`` does."""

    @property
    def original(self) -> MeasuredAccuracy:
        """The measurement of the original."""
        ...

    @property
    def seconds_each(self) -> float:
        """Upper bound of the time of one evaluation."""
        ...

    def pending(self, plans: Sequence[Plan], refit: str) -> int:
        """Return how many of these plans are not measured yet."""
        ...

    def __call__(self, plans: Sequence[Plan], refit: str = "none", stage: str = "sweep") -> Sequence[MeasuredAccuracy]:
        """Measure plans and return their measurements in the same order."""
        ...

    def glance(self, plan: Plan, images: int) -> MeasuredAccuracy:
        """Measure a plan on the first images only."""
        ...

    def drift(self, plan: Plan) -> float:
        """Return the drift of the membrane potentials of a plan that removes no channels, in thresholds."""
        ...


@dataclass
class Problem:
    """The problem that a policy solves.

    Attributes:
        program: the original, ready to be pruned; must not be changed.
        cost: cost of plans, in bytes or parameters.
        limit: the largest cost, or None to keep as little as ``max_drop`` allows.
        what: what cost and limit count, ``bytes`` or ``parameters``.
        measuring: returns an object that measures plans, created on first use; None without data.
        calibrating: returns statistics on images, computed on first use; None without data.
        max_drop: the most accuracy that may be lost, as a share (0.03 for three points), or None.
        reporter: told about each decision.
        evaluations: returns the most plans to measure, or None for no limit. A policy that measures sensitivity curves
            takes fewer points of each.
        bits: layer -> the bits that a plan may give it, ascending; None where all weights have the same type.
        ranks: layer -> the largest rank of its weights, for layers that a plan may give a lower one.
    """

    program: Program
    cost: Cost
    limit: int | None
    what: str = "bytes"
    measuring: Callable[[], Measure] | None = None
    calibrating: Callable[[], Calibration] | None = None
    max_drop: float | None = None
    reporter: Reporter = field(default_factory=Reporter)
    bits: dict[str, list[int]] | None = None
    ranks: dict[str, int] = field(default_factory=dict)
    evaluations: Callable[[], int | None] = lambda: None

    def announce(self, plans: Sequence[Plan], refit: str, what: str) -> None:
        """Report the number and time of the evaluations ahead; nothing where all plans are measured already.

        Args:
            plans: the plans to measure.
            refit: how their networks are refitted.
            what: what they are measured for, the start of the reported sentence.
        """
        measure = self.required_measure(what)
        new = measure.pending(plans, refit)
        if new:
            self.reporter.decide(f"{what}: at most {new} evaluations, about {duration(new * measure.seconds_each)}")

    def required_limit(self, policy: str) -> int:
        """Return the limit, for a policy that needs a budget.

        Raises:
            UsageError: there is no limit.
        """
        if self.limit is None:
            raise UsageError(f"policy {policy!r} needs a budget", hint="Give --budget, such as --budget 0.78.")
        return self.limit

    def required_measure(self, policy: str) -> Measure:
        """Return the object that measures plans, for a policy that needs data.

        Raises:
            UsageError: there is no data.
        """
        if self.measuring is None:
            raise UsageError(
                f"policy {policy!r} measures accuracy", hint="Give images with --data, or --policy uniform."
            )
        return self.measuring()
