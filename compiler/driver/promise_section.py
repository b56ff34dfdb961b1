"""The report's section on what is promised of a file."""

from __future__ import annotations

from dataclasses import dataclass, field

from svitc.driver.section import Section
from svitc.support.types import JsonDict


@dataclass(frozen=True)
class TestReport(Section):
    """A candidate that the confirming images tested.

    Attributes:
        kept: what it keeps, a share of the original's bytes, or of what the budget counts.
        drop: the drop on these images.
        held: whether the promise holds for it.
    """

    kept: float
    drop: float
    held: bool


@dataclass(frozen=True)
class PromiseReport(Section):
    """What the file loses at most on images like those that confirmed it (docs/promises.md).

    Attributes:
        text: the promise in a sentence.
        basis: ``labels``, or ``agreement`` with the original where there are none.
        confidence: probability with which it holds.
        images: number of images that confirmed it.
        choosing_images: number of other images, on which the plan was chosen; None where none was chosen on images.
        choosing: name of the images that it was chosen on.
        lost, gained: numbers of images that only the original, and that only the network gets right.
        drop: their difference, a share of the images.
        drop_bound: what the true drop is at most: what was asked for, or the upper confidence bound.
        max_drop: the drop that was asked for; None where none was.
        tests: the plans that were tested for the drop that was asked for, in order.
        before_finetuning: whether this is of the network before fine-tuning.
    """

    text: str
    basis: str
    confidence: float
    images: int
    choosing_images: int | None
    choosing: str | None
    lost: int
    gained: int
    drop: float
    drop_bound: float
    max_drop: float | None = None
    tests: list[TestReport] = field(default_factory=list)
    before_finetuning: bool = False

    def told(self) -> JsonDict:
        """Return what the plan and the file say of it."""
        names = ("text", "basis", "max_drop", "drop_bound", "confidence", "images")
        return {name: getattr(self, name) for name in names}


__all__ = ["PromiseReport", "TestReport"]
