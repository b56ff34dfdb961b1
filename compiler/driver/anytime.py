"""Anytime: finds a rule for stopping early on images, and reports what it saves and what is promised of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from svitc.data.inputs import Data, has_labels
from svitc.driver.options import CompileOptions
from svitc.driver.report import AnytimeReport, EnergyReport, ToleranceReport
from svitc.energy.estimate import energy_after
from svitc.errors import InputError, UsageError
from svitc.evaluation.early_exit import Outcome, Rule, choose_path, outcome_of
from svitc.evaluation.promise import Promise, confirm, split_images
from svitc.evaluation.running_scores import running_scores
from svitc.ir.outputs import class_scores
from svitc.ir.program import Program
from svitc.onnx.export import export_step
from svitc.onnx.model_info import read_proto, reading_metadata
from svitc.onnx.words import time_steps
from svitc.support import human
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

TOLERANCES = (0.0025, 0.005, 0.01, 0.02, 0.03)  # of the report's table, beside the one that was asked for
FEWEST_IMAGES = 20  # to choose and to confirm on, before a promise is thought of


@dataclass(frozen=True)
class Anytime:
    """The result of looking for a rule.

    Attributes:
        rule: the rule, which never stops early where nothing could be promised.
        report: the report's section.
    """

    rule: Rule
    report: AnytimeReport

    def metadata(self) -> JsonDict:
        """Return the value of the file's metadata key ``early_exit``."""
        report = self.report
        told = {name: getattr(report, name) for name in ("basis", "max_drop", "confidence", "mean_steps", "drop_bound")}
        return {**self.rule.to_json(), **told, "promise": promise_words(report)}


def check_anytime(program: Program, options: CompileOptions) -> None:
    """Check that a network can stop early, before anything takes time.

    Raises:
        UsageError: there are no images, the options do not fit together, or the network scores no classes.
        InputError: the network has a single time step.
    """
    if options.anytime is None:
        return
    if options.data is None:
        raise UsageError(
            "what stopping early costs can only be promised on images that the network was not trained on",
            hint="Give some with --data.",
        )
    if options.per_step:
        raise UsageError(
            "--anytime stops by the average of the steps so far, which --per-step leaves out", hint="Use one of them."
        )
    if not 0 <= options.anytime < 1:
        raise UsageError(f"a drop of {100 * options.anytime:g} points is not between 0 and 100")
    if not 0.5 <= options.confidence < 1:
        raise UsageError(
            f"--confidence {options.confidence:g} is not at least 0.5 and below 1",
            hint="0.95 is usual; 0.99 is more careful.",
        )
    if class_scores(program.graph, program.info) is None:
        names = ", ".join(program.output_names)
        raise UsageError(
            f"--anytime stops when a class is sure, and no single output of this model scores classes: {names}",
            hint="Name one of several outputs logits.",
        )
    if time_steps(program) < 2:
        raise InputError("this model has a single time step, before which nothing can stop")
    if len(options.data) < FEWEST_IMAGES:
        raise UsageError(
            f"{human.subject(len(options.data), 'image')} too few to find out when inference may stop",
            hint="Give at least some hundreds with --data: for a drop of half a point it takes about 900.",
        )


def find_rule(
    program: Program, options: CompileOptions, energies: EnergyReport | None, reporter: Reporter
) -> Anytime | None:
    """Find when inference may stop, on the images of ``data``.

    Args:
        program: the network as it is deployed.
        options: ``data``, ``anytime``, ``confidence`` and ``seed``.
        energies: the energy for all steps, if it is known.
        reporter: told about progress.

    Returns:
        The rule; None where none was asked for.
    """
    if options.anytime is None or options.data is None:
        return None
    with reporter.stage("anytime", len(options.data)) as step:
        running, labels = _scores(program, options.data, step)
        chosen, others = split_images(running.shape[1], options.seed)
        path = choose_path(running[:, chosen])
        outcomes = [outcome_of(rule, running[:, others], None if labels is None else labels[others]) for rule in path]
        found = Finding(outcomes, running.shape, len(chosen), labels is not None, options.confidence, energies)
    return found.anytime(options.anytime)


def _scores(program: Program, data: Data, step: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the running scores ``[T, N, classes]`` of images, and their labels ``[N]`` if they have any."""
    scores, labels = [], []
    for batch, classes in running_scores(program, export_step(program), data):
        scores.append(batch)
        labels.append(classes)
        step(sum(map(len, labels)))
    return np.concatenate(scores, axis=1), np.concatenate(labels) if has_labels(data) else None


def stored_rule(folder: Path) -> Rule | None:
    """Return the rule in the file of an output folder; None without one, or for anything else than such a folder."""
    if not (folder / "model.onnx").is_file():
        return None
    entries = {entry.key: entry.value for entry in read_proto(folder / "model.onnx").metadata_props}
    with reading_metadata("early_exit"):
        stored = json.loads(entries.get("early_exit", "null"))
        return None if stored is None else Rule(tuple(stored["thresholds"]), np.array(stored["offsets"], np.float64))


def energy_when_stopping(
    program: Program, rule: Rule, data: Data, totals: Mapping[str, float], reporter: Reporter
) -> JsonDict:
    """Return how many time steps are run on images, and the energy of an image then.

    Args:
        program: the network.
        rule: when inference stops.
        data: the images; their labels are not used.
        totals: ``Energy.totals`` for all steps.
        reporter: told about progress.
    """
    with reporter.stage("anytime", len(data)) as step:
        running, _ = _scores(program, data, step)
    steps, mean_steps = len(running), float(rule.steps(running).mean())
    return {"time_steps": steps, "mean_steps": mean_steps, "pj": energy_after(totals, mean_steps, steps)}


@dataclass(frozen=True)
class Finding:
    """What rules did on the images that confirm them.

    Attributes:
        outcomes: of each rule, from the most cautious to the boldest.
        shape: numbers of steps, images and classes.
        choosing_images: number of other images, on which the rules were chosen.
        labeled: whether the images have labels.
        confidence: of each promise.
        energies: the energy for all steps, if it is known.
    """

    outcomes: list[Outcome]
    shape: tuple[int, ...]
    choosing_images: int
    labeled: bool
    confidence: float
    energies: EnergyReport | None

    def anytime(self, drop: float) -> Anytime:
        """Return the rule for a drop, and the report."""
        promise = confirm(self.outcomes, drop, self.confidence)
        own = self.row(drop, promise)
        rows = [own, *(self.row(each, confirm(self.outcomes, each, self.confidence)) for each in TOLERANCES)]
        steps, _, classes = self.shape
        never = Rule((*([None] * (steps - 1)), 0.0), np.zeros((steps, classes)))
        report = AnytimeReport(
            time_steps=steps,
            images=self.outcomes[0].images,
            choosing_images=self.choosing_images,
            basis="labels" if self.labeled else "agreement",
            confidence=self.confidence,
            full=self.outcomes[0].full,
            **{name: getattr(own, name) for name in ("max_drop", "mean_steps", "drop", "drop_bound", "energy_pj")},
            full_energy_pj=self.energy_pj(steps),
            needed=promise.needed,
            tolerances=sorted({row.max_drop: row for row in rows}.values(), key=lambda row: row.max_drop),
            curve=[(outcome.mean_steps, outcome.drop) for outcome in self.outcomes],
        )
        return Anytime(never if promise.outcome is None else promise.outcome.rule, report)

    def energy_pj(self, mean_steps: float) -> float | None:
        """Return the energy of an image; what does not change over time is computed once."""
        return None if self.energies is None else energy_after(self.energies.compiled, mean_steps, self.shape[0])

    def row(self, drop: float, promise: Promise[Outcome]) -> ToleranceReport:
        """Return what is promised for a drop."""
        outcome = promise.outcome
        steps = float(self.shape[0]) if outcome is None else outcome.mean_steps
        return ToleranceReport(
            max_drop=drop,
            mean_steps=steps,
            drop=0.0 if outcome is None else outcome.drop,
            drop_bound=0.0 if outcome is None else outcome.bound(self.confidence),
            energy_pj=self.energy_pj(steps),
        )


def promise_words(report: AnytimeReport) -> str:
    """Return what is promised, in a sentence."""
    if report.mean_steps == report.time_steps:
        return "inference never stops early: nothing could be promised"
    costs = "costs" if report.basis == "labels" else "changes the class of"
    of = "points of top-1" if report.basis == "labels" else "% of the images"
    return (
        f"stopping early {costs} at most {100 * report.max_drop:g} {of}, with {report.confidence:.0%} confidence, for "
        f"images like the {report.images} that confirmed it"
    )


__all__ = [
    "Anytime",
    "Finding",
    "check_anytime",
    "energy_when_stopping",
    "find_rule",
    "promise_words",
    "stored_rule",
]
