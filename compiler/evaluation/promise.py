"""Promises: what a compressed network may lose on images that nobody has seen, confirmed on a part of the images.

Images are split once. On the choosing part candidates are searched, and put in an order from the most cautious to the
boldest. The confirming part, which no search has looked at, tests them in that order, and the first failure ends it.
The order is fixed before these images are looked at, so no error has to be shared among the tests ("Learn then Test":
A. N. Angelopoulos, S. Bates, E. J. Candès, M. I. Jordan and L. Lei, arXiv 2110.01052, 2021, fixed-sequence testing).
Each test is the exact unconditional one for paired binary outcomes of ``support.confidence``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from svitc import onnx as backend
from svitc import runtimes
from svitc.data.inputs import Data, has_labels
from svitc.ir.outputs import required_scores
from svitc.ir.program import Program
from svitc.support.confidence import drop_bound, drop_p_value, images_needed
from svitc.support.reporter import Reporter

CHOOSING_SHARE = 0.3  # of the images, and no more than this number of them
MOST_CHOOSING_IMAGES = 5000
FEWEST_CHOOSING_IMAGES = 4


class Tested(ABC):
    """What a candidate did on images that it was not chosen on."""

    @property
    @abstractmethod
    def counts(self) -> tuple[int, int, int]:
        """The numbers of images that only the original gets right, that only the candidate does, and of all images."""

    @property
    def drop(self) -> float:
        """The share of right classes that the candidate loses; negative where it gains."""
        lost, gained, images = self.counts
        return (lost - gained) / images

    def bound(self, confidence: float) -> float:
        """Return what the true drop is at most, with a confidence."""
        return drop_bound(*self.counts, confidence)

    def within(self, drop: float, confidence: float) -> bool:
        """Return whether the true drop is below ``drop``, with a confidence."""
        return drop_p_value(*self.counts, drop) <= 1 - confidence


T = TypeVar("T", bound=Tested)


@dataclass(frozen=True)
class Promise(Generic[T]):
    """The boldest candidate that a drop could be promised for.

    Attributes:
        outcome: what it did on the images that confirmed it; None where nothing could be promised.
        needed: where nothing could be promised, about how many images it would take for the most cautious candidate;
            None if no number is enough.
        tested: every candidate that was tested; the last one failed, unless all held.
    """

    outcome: T | None
    needed: int | None
    tested: tuple[T, ...] = field(default=())


def confirm(outcomes: Iterable[T], drop: float, confidence: float, split: bool = True) -> Promise[T]:
    """Return the boldest candidate whose drop is at most ``drop`` with a confidence, tested one after the other.

    Args:
        outcomes: what the candidates did, in an order that was fixed before these images were looked at; those behind
            the first failure are not asked for.
        drop: the largest drop, a share of the images.
        confidence: of the statement.
        split: whether the candidates were chosen on another part of the same images, which ``needed`` counts as well.
    """
    held: T | None = None
    tested = []
    for outcome in outcomes:
        tested.append(outcome)
        if not outcome.within(drop, confidence):
            break
        held = outcome
    if held is not None:
        return Promise(held, None, tuple(tested))
    lost, gained, images = tested[0].counts
    needed = images_needed(lost / images, gained / images, drop, confidence) if drop else None
    return Promise(None, all_images(needed) if needed is not None and split else needed, tuple(tested))


def split_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the images to choose on and of those to confirm on, drawn at random."""
    order = np.random.default_rng(seed).permutation(count)
    chosen = min(MOST_CHOOSING_IMAGES, max(FEWEST_CHOOSING_IMAGES, round(CHOOSING_SHARE * count)), count - 1)
    return np.sort(order[:chosen]), np.sort(order[chosen:])


def all_images(confirming: int) -> int:
    """Return about how many images there must be so that this many are left to confirm on."""
    return confirming + min(MOST_CHOOSING_IMAGES, round(confirming * CHOOSING_SHARE / (1 - CHOOSING_SHARE)))


@dataclass(frozen=True)
class Classes(Tested):
    """The classes of a network beside those of the original, on the same images.

    Without labels, the class of the original counts as right.

    Attributes:
        images: number of images.
        lost: number of images that only the original gets right.
        gained: number of images that only the network gets right.
        original: number of images that the original gets right.
    """

    images: int
    lost: int
    gained: int
    original: int = 0

    @property
    def counts(self) -> tuple[int, int, int]:
        """See ``Tested``."""
        return self.lost, self.gained, self.images

    @property
    def right(self) -> int:
        """The number of images that the network gets right."""
        return self.original - self.lost + self.gained


def compare_classes(
    program: Program, original: Sequence[np.ndarray], exported: bytes, data: Data, reporter: Reporter, stage: str
) -> Classes:
    """Count the images on which an exported file and the original are right.

    Args:
        program: the original.
        original: classes that the original predicts, batch by batch.
        exported: the ONNX file.
        data: the images that these are of.
        reporter: told about progress.
        stage: name of the stage for the reporter.
    """
    session, scores = runtimes.session(exported), required_scores(program.graph, program.info)
    labeled = has_labels(data)
    counts = np.zeros(4, dtype=int)
    with reporter.stage(stage, len(data)) as step:
        for (x, labels), predicted in zip(data.batches(len(original[0])), original, strict=True):
            expected = labels.numpy() if labeled else predicted
            outputs = session.run(program.output_names, {backend.INPUT: x.numpy()})
            before, now = predicted == expected, scores.of(outputs).argmax(axis=-1) == expected
            counts += [len(now), (before & ~now).sum(), (now & ~before).sum(), before.sum()]
            step(int(counts[0]))
    return Classes(*counts.tolist())


__all__ = [
    "FEWEST_CHOOSING_IMAGES",
    "Classes",
    "Promise",
    "Tested",
    "all_images",
    "compare_classes",
    "confirm",
    "split_images",
]
