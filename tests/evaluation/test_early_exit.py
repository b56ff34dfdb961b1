"""Rules for stopping early: what a rule does by hand, how a path is chosen, and promises that hold."""

from __future__ import annotations

import numpy as np
import pytest

from svitc.evaluation.early_exit import (
    Outcome,
    Rule,
    choose_path,
    fit_offsets,
    margins_of,
    outcome_of,
    running_mean,
)
from svitc.evaluation.promise import all_images, confirm, split_images


def network(images: int, seed: int, noise: float = 2.0, steps: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return running scores ``[T, N, 5]`` of a made network, whose first step favors class 0, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, images)
    scores = noise * generator.standard_normal((steps, images, 5)) + 3 * np.eye(5)[labels]
    scores[0, :, 0] += 2
    return running_mean(scores.astype(np.float32)), labels


def test_a_rule_stops_at_the_first_margin_that_reaches_its_threshold():
    logs = np.log(np.array([[0.6, 0.4], [0.7, 0.3], [0.9, 0.1]]))[:, None]  # margins 0.2, 0.4, 0.8
    scores = np.concatenate([logs, logs[:, :, ::-1]], axis=1)
    assert margins_of(scores) == pytest.approx(np.array([[0.2, 0.2], [0.4, 0.4], [0.8, 0.8]]))
    none = np.zeros((3, 2))
    assert Rule((0.3, 0.39, 0.0), none).steps(scores).tolist() == [2, 2]
    assert Rule((None, 0.5, 0.0), none).steps(scores).tolist() == [3, 3]
    toward_first = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    rule = Rule((0.5, None, 0.0), toward_first)
    assert rule.steps(scores).tolist() == [1, 3]
    assert rule.classes(scores).tolist() == [0, 1]
    assert rule.to_json() == {"kind": "margin", "thresholds": [0.5, None, 0.0], "offsets": toward_first.tolist()}


def test_the_running_mean_ends_with_the_sum_that_the_file_writes():
    scores = np.random.default_rng(0).standard_normal((3, 7, 4)).astype(np.float32)
    expected = ((scores[0] + scores[1]) + scores[2]) * np.float32(1 / 3)
    assert np.array_equal(running_mean(scores)[-1], expected)
    assert np.array_equal(running_mean(scores)[0], scores[0])


def test_offsets_take_back_what_a_step_favors_and_leave_the_last_one_alone():
    running, _ = network(2000, seed=0)
    offsets = fit_offsets(running)
    assert offsets[0, 0] < -1 and (offsets[0, 1:] > 0).all()
    assert not offsets[-1].any()
    assert offsets.mean(axis=1) == pytest.approx(0, abs=1e-3)


def test_a_path_goes_from_cautious_to_bold():
    running, labels = network(3000, seed=1)
    path = choose_path(running[:, :1000])
    outcomes = [outcome_of(rule, running[:, 1000:], labels[1000:]) for rule in path]
    steps = [outcome.mean_steps for outcome in outcomes]
    assert steps == sorted(steps, reverse=True) and steps[0] > 3 > 2 > steps[-1]
    lost = [outcome_of(rule, running[:, 1000:], None).lost for rule in path]
    assert lost == sorted(lost) and lost[-1] > 0


def test_a_step_that_says_nothing_never_stops():
    running, _ = network(500, seed=2)
    running[0] = np.random.default_rng(3).permutation(running[-1])  # margins as sure as the last ones, of other images
    cautious = choose_path(running)[0]
    assert cautious.thresholds[0] is None or cautious.steps(running).min() > 1


def test_promises_hold_in_resampled_splits():
    """A pool is all that there is; of 25 draws from it, hardly any promises more than the pool keeps."""
    running, labels = network(20_000, seed=4)
    broken, promised = 0, 0
    for seed in range(25):
        images = np.random.default_rng(seed).integers(0, labels.size, 3000)
        chosen, others = split_images(len(images), seed)
        path = choose_path(running[:, images[chosen]])
        outcomes = [outcome_of(rule, running[:, images[others]], labels[images[others]]) for rule in path[::4]]
        held = confirm(outcomes, 0.02, 0.95).outcome
        promised += held is not None
        broken += held is not None and outcome_of(held.rule, running, labels).drop > 0.02
    assert promised == 25 and broken <= 3


def test_without_enough_images_nothing_is_promised_and_the_number_is_told():
    rule = Rule((0.5, 0.0), np.zeros((2, 3)))
    few = confirm([Outcome(rule, images=100, mean_steps=1.5, full=0.9, lost=0, gained=0)], 0.005, 0.95)
    assert few.outcome is None and few.needed is not None and 800 < few.needed < 1000
    enough = Outcome(rule, images=few.needed, mean_steps=1.5, full=0.9, lost=0, gained=0)
    assert confirm([enough], 0.005, 0.95).outcome is enough
    worse = Outcome(rule, images=2000, mean_steps=1.2, full=0.9, lost=40, gained=0)
    assert confirm([worse, enough], 0.005, 0.95).outcome is None  # the first failure ends it
    assert confirm([worse], 0.005, 0.95).needed is None


def test_images_are_split_by_seed():
    chosen, others = split_images(1000, 0)
    assert len(chosen) == 300 and sorted([*chosen, *others]) == list(range(1000))
    assert not np.array_equal(chosen, split_images(1000, 1)[0])
    assert len(split_images(100_000, 0)[0]) == 5000
    assert all_images(700) == 1000
