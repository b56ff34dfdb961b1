"""Early exit: a rule for stopping inference before the last time step, and a promise of what it may cost.

After each time step a network has an answer: the running mean of its class scores. A rule adds an offset for each class
to it and stops where the margin reaches a threshold; both depend on the step. Images are split. On one part a path of
rules is chosen, from the most cautious to the boldest, by figures that are smooth and need no labels. On the other part
the rules are tested in the order of the path, and the first failure ends it. The order is fixed before these images are
looked at, so no error has to be shared among the tests (promise.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import special

from svitc.evaluation.promise import Tested
from svitc.support.types import JsonDict

RISKS = np.geomspace(0.002, 0.4, 32)  # of another class than that after all steps, at which a rule still stops
RIDGE = 1.0  # weight of the prior that offsets are 0, and of that on a risk's slope, in images
SMALLEST_MARGIN = 1e-6  # also the smallest distance from 1: margins are seen on a logit scale
DIGITS = 4  # of thresholds and offsets, which a file holds as text


@dataclass(frozen=True)
class Rule:
    """When inference stops, and the answer then.

    Attributes:
        thresholds: for each step the margin at which inference stops after it; None where it does not, and 0 for the
            last step. The margin is that between the two largest probabilities of the softmax of the answer.
        offsets: added to the running scores for the answer, ``[T, classes]``; 0 after the last step.
    """

    thresholds: tuple[float | None, ...]
    offsets: np.ndarray

    def answers(self, running: np.ndarray) -> np.ndarray:
        """Return the answer after each step, ``[T, N, classes]``, from running scores of this shape."""
        return running + self.offsets[:, None]

    def steps(self, running: np.ndarray) -> np.ndarray:
        """Return how many steps are run for each image, ``[N]``, from running scores ``[T, N, classes]``."""
        margins = margins_of(self.answers(running))
        taken = np.full(margins.shape[1], len(margins))
        for t in reversed(range(len(margins) - 1)):
            threshold = self.thresholds[t]
            if threshold is not None:
                taken[margins[t] >= threshold] = t + 1
        return taken

    def classes(self, running: np.ndarray) -> np.ndarray:
        """Return the class that each image gets, ``[N]``, from running scores ``[T, N, classes]``."""
        chosen = self.answers(running).argmax(axis=-1)
        return chosen[self.steps(running) - 1, np.arange(chosen.shape[1])]

    def to_json(self) -> JsonDict:
        """Return what the file's metadata hold under ``early_exit``."""
        return {"kind": "margin", "thresholds": list(self.thresholds), "offsets": self.offsets.tolist()}


@dataclass(frozen=True)
class Outcome(Tested):
    """What a rule did on images that it was not chosen on.

    Attributes:
        rule: the rule.
        images: number of images.
        mean_steps: mean number of time steps that were run.
        full: share of the images that get the right class after all steps; 1 without labels.
        lost: number of images that are right after all steps only.
        gained: number of images that are right with the rule only.
    """

    rule: Rule
    images: int
    mean_steps: float
    full: float
    lost: int
    gained: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """See ``Tested``."""
        return self.lost, self.gained, self.images


def margins_of(scores: np.ndarray) -> np.ndarray:
    """Return the difference of the two largest probabilities of the softmax over the last axis."""
    likeliest = np.partition(scores.astype(np.float64), (-2, -1))
    total = np.exp(likeliest - likeliest[..., -1:]).sum(axis=-1)
    return (1 - np.exp(likeliest[..., -2] - likeliest[..., -1])) / total


def running_mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean of the steps so far, from scores of each step, ``[T, N, classes]``.

    A sum of one step after the other, times 1 / t, as AverageSteps writes it.
    """
    sums = np.cumsum(scores, axis=0, dtype=scores.dtype)
    return sums * np.array([1 / t for t in range(1, len(scores) + 1)], dtype=scores.dtype).reshape(-1, 1, 1)


def choose_path(running: np.ndarray) -> list[Rule]:
    """Return rules from the most cautious to the boldest, chosen on images without their labels.

    A rule stops where another class than that after all steps is less probable than its risk. How probable that is
    follows from the margin by a logistic function, which is fitted for each step.

    Args:
        running: running scores ``[T, N, classes]``.
    """
    offsets = fit_offsets(running)
    answers = running + offsets[:, None]
    odds = _odds(margins_of(answers))
    differs = answers.argmax(axis=-1) != answers[-1].argmax(axis=-1)
    lines = [_fit_line(odds[t], differs[t]) for t in range(len(running) - 1)]
    return [Rule((*(_threshold(line, risk) for line in lines), 0.0), offsets) for risk in RISKS.tolist()]


def fit_offsets(running: np.ndarray) -> np.ndarray:
    """Return for each step and class what to add to running scores to come closest to those after all steps.

    Membranes start empty, so that the first steps favor some classes. The offsets minimize the cross entropy with the
    probabilities after all steps.

    Args:
        running: running scores ``[T, N, classes]``.

    Returns:
        ``[T, classes]``, whose mean over the classes is 0; all 0 for the last step.
    """
    scores = torch.from_numpy(running.astype(np.float64))
    final = scores[-1].softmax(dim=-1)
    offsets = torch.zeros(len(scores), scores.shape[-1], dtype=torch.float64)
    for t in range(len(scores) - 1):
        offset = torch.zeros_like(offsets[t])

        def loss(offset: torch.Tensor = offset, step: torch.Tensor = scores[t]) -> torch.Tensor:
            return F.cross_entropy(step + offset, final, reduction="sum") + RIDGE / 2 * offset.square().sum()

        _minimize(loss, offset)
        offsets[t] = offset - offset.mean()
    return np.round(offsets.numpy(), DIGITS)


def outcome_of(rule: Rule, running: np.ndarray, labels: np.ndarray | None) -> Outcome:
    """Return what a rule does on images.

    Args:
        rule: the rule.
        running: running scores ``[T, N, classes]``.
        labels: the right classes, ``[N]``; None to take those after all steps for right.
    """
    final = running[-1].argmax(axis=-1)
    expected = final if labels is None else labels
    full, early = final == expected, rule.classes(running) == expected
    return Outcome(
        rule=rule,
        images=len(expected),
        mean_steps=float(rule.steps(running).mean()),
        full=float(full.mean()),
        lost=int((full & ~early).sum()),
        gained=int((early & ~full).sum()),
    )


def _odds(margins: np.ndarray) -> np.ndarray:
    kept = np.clip(margins, SMALLEST_MARGIN, 1 - SMALLEST_MARGIN)
    return np.log(kept / (1 - kept))


def _fit_line(odds: np.ndarray, differs: np.ndarray) -> tuple[float, float]:
    """Return intercept and slope of the log-odds of another class over those of the margin, each ``[N]``.

    One image of each outcome is added in the middle, so that the fit exists where all images agree.
    """
    x = torch.from_numpy(np.append(odds, [odds.mean()] * 2))
    y = torch.from_numpy(np.append(differs, [True, False]).astype(np.float64))
    line = torch.zeros(2, dtype=torch.float64)

    def loss() -> torch.Tensor:
        risks = F.binary_cross_entropy_with_logits(line[0] + line[1] * x, y, reduction="sum")
        return risks + RIDGE / 2 * line[1] ** 2

    _minimize(loss, line)
    return float(line[0]), float(line[1])


def _threshold(line: tuple[float, float], risk: float) -> float | None:
    """Return the margin from which on another class is less probable than a risk, or None if there is none."""
    intercept, slope = line
    if slope >= 0:  # a larger margin means nothing at this step
        return None
    odds = (np.log(risk / (1 - risk)) - intercept) / slope
    margin = float(np.ceil(10**DIGITS * special.expit(odds)) / 10**DIGITS)
    return margin if margin < 1 else None


def _minimize(loss: Callable[[], torch.Tensor], variable: torch.Tensor) -> None:
    """Minimize a smooth convex function of a variable, in place."""
    variable.requires_grad_(True)
    optimizer = torch.optim.LBFGS([variable], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    variable.requires_grad_(False)
