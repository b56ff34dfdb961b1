"""The problem that a policy solves: a program, what it may cost, and a way to measure plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from svitc.analysis.calibration import Calibration
from svitc.errors import UsageError
from svitc.ir.program import Program
from svitc.planning.cost import Cost
from svitc.planning.plan import Plan
from svitc.support.human import duration
from svitc.support.reporter import Reporter


class Measure(Protocol):
    """Measures plans, as ``svitc.evaluation.sweep.Sweep`` does."""

    @property
    def original(self) -> Any: ...

    @property
    def seconds_each(self) -> float:
        """What one evaluation takes at most."""
        ...

    def pending(self, plans: Sequence[Plan], refit: str) -> int:
        """How many of these plans are not measured yet."""
        ...

    def __call__(self, plans: Sequence[Plan], refit: str = "none", stage: str = "sweep") -> list[Any]: ...

    def glance(self, plan: Plan, images: int) -> Any:
        """A plan measured on the first images only."""
        ...

    def drift(self, plan: Plan) -> float:
        """How far the membranes of a plan that cuts nothing are from the original's, in thresholds."""
        ...


@dataclass
class Problem:
    """What a policy is asked for.

    Attributes:
        program: the original, ready to be pruned; not to be changed.
        cost: of any widths.
        limit: the most that may be kept, or None: as little as ``max_drop`` allows.
        what: ``bytes`` or ``parameters``.
        measuring: gives what measures plans, on first use; None without data.
        calibrating: gives statistics on images, on first use; None without data.
        max_drop: the most accuracy that may be lost, a share (0.03 is three points), or None.
        reporter: told of each decision.
        bits: layer -> the bits that a plan may give it, ascending; None where weights are all of one type.
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

    def announce(self, plans: Sequence[Plan], refit: str, what: str) -> None:
        """Say how many evaluations are ahead, and how long they will take; nothing where all are there already."""
        measure = self.required_measure(what)
        new = measure.pending(plans, refit)
        if new:
            self.reporter.decide(f"{what}: at most {new} evaluations, about {duration(new * measure.seconds_each)}")

    def required_limit(self, policy: str) -> int:
        """Raises UsageError where the policy cannot do without a budget."""
        if self.limit is None:
            raise UsageError(f"policy {policy!r} needs a budget", hint="Give --budget, such as --budget 0.78.")
        return self.limit

    def required_measure(self, policy: str) -> Measure:
        """Raises UsageError where the policy cannot do without data."""
        if self.measuring is None:
            raise UsageError(
                f"policy {policy!r} measures accuracy", hint="Give labelled images with --data, or --policy uniform."
            )
        return self.measuring()
