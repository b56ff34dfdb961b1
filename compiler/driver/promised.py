"""What is promised of a file: after a compilation, and where an output folder is verified on images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svitc.data.dataset import Dataset
from svitc.data.inputs import Data, has_labels
from svitc.driver.confirm import TestedPlan
from svitc.driver.float_network import read_report
from svitc.driver.prepare import PART, Workspace
from svitc.driver.promise_section import PromiseReport, TestReport
from svitc.driver.report_sections import classify
from svitc.evaluation.promise import Classes, Promise, compare_classes, split_images
from svitc.ir.outputs import class_scores
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.planning.plan import Plan
from svitc.support.human import points_at_most
from svitc.support.reporter import Reporter


def promise_report(
    workspace: Workspace,
    source: str,
    measured: Classes,
    promise: Promise[TestedPlan] | None,
    replayed: bool,
    finetuned: bool,
) -> PromiseReport:
    """Return what is promised of a file that was compiled.

    Args:
        workspace: gives the options, and the images that the plan was chosen on.
        source: where these came from.
        measured: counts of the written file on the reported images.
        promise: the result of the tests for ``max_drop``, or None.
        replayed: whether the plan was not chosen here.
        finetuned: whether the network was fine-tuned after the tests.
    """
    options, data = workspace.options, workspace.reported(source)
    assert data is not None
    chosen = None
    if not replayed and workspace.opened_sweep is not None:
        chosen = workspace.parts()[0] if source == PART else options.train_data or workspace.drawn
    images = None if chosen is None else (len(chosen), chosen.name)
    unsure = replayed and source != PART
    drop, confidence = options.max_drop, options.confidence
    if promise is None or promise.outcome is None or drop is None:
        return _report(measured, data, confidence, measured.bound(confidence), choosing=images, unsure=unsure)
    tests = [TestReport(each.kept, each.drop, each.within(drop, confidence)) for each in promise.tested]
    counts = promise.outcome.classes
    about: dict[str, Any] = {"max_drop": drop, "tests": tests, "before_finetuning": finetuned}
    return _report(counts, data, confidence, drop, choosing=images, unsure=unsure, **about)


def verified_promise(
    folder: Path, program: Program, original: Program, data: Dataset, settings: tuple[float, int], reporter: Reporter
) -> PromiseReport | None:
    """Return what the network of an output folder loses at most against the model that was compiled.

    Where the folder's plan was chosen on a part of the same images, the others confirm it. None where no single output
    scores classes.

    Args:
        folder: the output folder.
        program: its program.
        original: the model.
        data: images that the model was not trained on.
        settings: the confidence, and the seed that images are split by.
        reporter: told about progress.
    """
    if class_scores(original.graph, original.info) is None:
        return None
    confidence, seed = settings
    told, count = read_report(folder).get("promise") or {}, None
    source = Plan.load(folder / "plan.json").provenance.get("data")
    if source == PART and told.get("choosing") == data.name:
        count = told.get("choosing_images")
    chosen, others = split_images(len(data), seed)
    same = count is not None and count == len(chosen) and told.get("images") == len(others)
    confirming = data.subset(others) if same else data
    # the whole network for batches of any size, whatever form the file has
    counts = compare_classes(
        original, classify(original, confirming, reporter), export(program), confirming, reporter, "confirm"
    )
    images = (len(chosen), data.name) if same else None
    return _report(counts, confirming, confidence, counts.bound(confidence), choosing=images, unsure=not same)


def _report(
    counts: Classes,
    data: Data,
    confidence: float,
    bound: float,
    *,
    choosing: tuple[int, str] | None,
    unsure: bool,
    **about: Any,
) -> PromiseReport:
    """Return the section.

    Args:
        counts: what was lost and gained.
        data: the images that confirm.
        confidence: of the promise.
        bound: what the true drop is at most.
        choosing: number and name of the images that the plan was chosen on.
        unsure: whether it may have been chosen on those that confirm.
        about: further fields of the section.
    """
    labeled = has_labels(data)
    points = points_at_most(bound)
    loses = f"loses at most {points} points of top-1 against the original"
    changes = f"gives at most {points}% of the images another class than the original"
    subject = "network before fine-tuning" if about.get("before_finetuning") else "file"
    text = (
        f"the {subject} {loses if labeled else changes}, with {confidence:.0%} confidence, for images like the "
        f"{counts.images:,} that confirmed it" + (", unless its plan was chosen on them" if unsure else "")
    )
    return PromiseReport(
        text=text,
        basis="labels" if labeled else "agreement",
        confidence=confidence,
        images=counts.images,
        choosing_images=None if choosing is None else choosing[0],
        choosing=None if choosing is None else choosing[1],
        lost=counts.lost,
        gained=counts.gained,
        drop=counts.drop,
        drop_bound=bound,
        **about,
    )


__all__ = ["promise_report", "verified_promise"]
