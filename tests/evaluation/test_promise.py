"""Choosing and confirming: the order of tests, the numbers of images, and promises that hold for made networks."""

from __future__ import annotations

import numpy as np
import pytest

from svitc.evaluation.promise import Classes, all_images, confirm, split_images


def networks(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return on which images an original is right, ``[N]``, and on which ever bolder networks, ``[12, N]``."""
    generator = np.random.default_rng(seed)
    before = generator.random(images) < 0.75
    changed = generator.random(images)  # nested: what a cautious network changes, a bold one changes as well
    shares = np.linspace(0.002, 0.08, 12)[:, None]
    turns = np.where(before, changed < shares, changed < shares / 2)
    return before, before ^ turns


def classes(before: np.ndarray, now: np.ndarray) -> Classes:
    """Return the counts of two networks."""
    return Classes(len(before), int((before & ~now).sum()), int((now & ~before).sum()), int(before.sum()))


def test_promises_of_the_boldest_hold_in_resampled_draws():
    """Were the boldest taken that seems to hold, by counts on the same images, a fifth of the promises would break."""
    before, bolder = networks(20_000, 0)
    truth = [classes(before, now).drop for now in bolder]
    broken = careless = promised = 0
    for seed in range(40):
        drawn = np.random.default_rng(seed).integers(0, before.size, 2000)
        outcomes = [classes(before[drawn], now[drawn]) for now in bolder]
        found = confirm(outcomes, 0.02, 0.95)
        held = outcomes.index(found.outcome) if found.outcome is not None else None
        promised += held is not None
        broken += held is not None and truth[held] > 0.02
        careless += truth[max(i for i, outcome in enumerate(outcomes) if outcome.drop <= 0.02)] > 0.02
    assert promised == 40 and broken <= 2 and careless >= 6


def test_the_first_failure_ends_it_and_those_behind_are_not_asked_for():
    asked = []

    def outcomes():
        for lost in (0, 1, 40, 0):
            asked.append(lost)
            yield Classes(500, lost, 0)

    found = confirm(outcomes(), 0.02, 0.95)
    assert asked == [0, 1, 40] and found.outcome.lost == 1 and [each.lost for each in found.tested] == asked
    assert found.outcome.within(0.02, 0.95) and found.outcome.bound(0.95) <= 0.02
    assert not found.tested[-1].within(0.02, 0.95)


@pytest.mark.parametrize("split", [True, False])
def test_how_many_images_it_takes(split):
    few = confirm([Classes(100, 0, 0)], 0.01, 0.95, split)
    assert few.outcome is None and few.needed == (all_images(301) if split else 301)
    assert confirm([Classes(301, 0, 0)], 0.01, 0.95).outcome is not None
    assert confirm([Classes(100, 5, 0)], 0.01, 0.95).needed is None


def test_few_images_leave_some_for_both_parts():
    for count in (5, 10, 13):
        chosen, others = split_images(count, 0)
        assert len(chosen) == 4 and sorted([*chosen, *others]) == list(range(count))
