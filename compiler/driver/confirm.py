"""Confirmation: tests plans on images that no search has looked at, and says what is promised (docs/promises.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from svitc.data.inputs import Data
from svitc.driver.apply import Exported, apply_plan, complete
from svitc.driver.options import CompileOptions
from svitc.driver.prepare import PART, WHOLE, Workspace
from svitc.driver.task import Task
from svitc.errors import BudgetError, UsageError
from svitc.evaluation.promise import Classes, Promise, Tested, compare_classes, confirm
from svitc.ir.channel_slicing import selection
from svitc.ir.outputs import class_scores
from svitc.ir.program import Program
from svitc.planning.plan import Plan
from svitc.support import human
from svitc.support.confidence import images_needed
from svitc.support.human import points_at_most
from svitc.support.reporter import Reporter

MANY_IMAGES = 100_000  # how many more it would take says nothing


@dataclass(frozen=True)
class TestedPlan(Tested):
    """A plan, as the network that would be written, on the confirming images.

    Attributes:
        plan: the plan, complete.
        pruned: the pruned program.
        exported: its file, with weights of the stored type.
        kept: what it keeps, a share of what the cost counts.
        classes: the counts.
    """

    plan: Plan
    pruned: Program
    exported: Exported
    kept: float
    classes: Classes

    @property
    def counts(self) -> tuple[int, int, int]:
        """See ``Tested``."""
        return self.classes.counts


def no_promise(program: Program, options: CompileOptions) -> str | None:
    """Return why nothing can be promised of the classes; None where it can."""
    if options.metric is not None:
        return "of a metric's values no exact test is known"
    if class_scores(program.graph, program.info) is None:
        return "no single output scores classes, and of other outputs no exact test is known"
    if options.data is None and options.train_data is not None:
        return "there are only images to train on, on which every compressed network looks better than it is"
    if options.data is None:
        return "there are no images to confirm it on"
    return None


def check_promise(program: Program, options: CompileOptions, confirming: int) -> None:
    """Check that a drop could be promised, before anything takes time.

    Args:
        program: the original.
        options: ``max_drop`` and ``confidence``.
        confirming: number of images that confirm, 0 without any.

    Raises:
        UsageError: even a network that loses nothing could not be confirmed.
    """
    if not 0.5 <= options.confidence < 1:
        raise UsageError(
            f"--confidence {options.confidence:g} is not at least 0.5 and below 1",
            hint="0.95 is usual; 0.99 is more careful.",
        )
    drop = options.max_drop
    if drop is None or no_promise(program, options) is not None or drop >= 1:
        return
    if drop == 0:
        raise UsageError(
            "no number of images can confirm that nothing at all is lost",
            hint="Allow a little with --max-drop, such as 0.5, or keep everything: --budget 1.",
        )
    fewest = images_needed(0, 0, drop, options.confidence) or 0
    if confirming < fewest:
        least = _least_drop(confirming, options.confidence)
        raise UsageError(
            f"{human.subject(confirming, 'image')} too few to promise a drop of at most {100 * drop:g} points with "
            f"{options.confidence:.0%} confidence: it takes {fewest} even where none of them is lost",
            hint=f"Give more with --data, or allow at least {100 * least:.1f} points with --max-drop, or leave it out: "
            "--budget says what can be promised.",
        )


def _least_drop(images: int, confidence: float) -> float:
    """Return the smallest drop that so many images could confirm, rounded up to a tenth of a point."""
    drops = (tenth / 1000 for tenth in range(1, 1000))
    return next((drop for drop in drops if (images_needed(0, 0, drop, confidence) or 0) <= images), 1.0)


@dataclass(frozen=True)
class Confirmation:
    """What tests the plans of one task.

    Attributes:
        workspace: gives the images, and the original's classes.
        task: the task of the compilation.
        of: what ``kept`` counts, ``bytes`` or ``parameters``.
        reporter: told about each test.
    """

    workspace: Workspace
    task: Task
    of: str
    reporter: Reporter

    def test(self, plan: Plan) -> TestedPlan:
        """Build the network of a plan, as it would be written, and count its classes on the confirming images."""
        workspace, task = self.workspace, self.task
        data = workspace.reported(str(plan.provenance.get("data", WHOLE)))
        assert data is not None
        with self.reporter.stage("prune"):
            plan = complete(workspace, task, plan, self.reporter, replayed=task.replayed is not None)
            pruned = apply_plan(workspace, task.prepared, plan, str(plan.provenance.get("refit", "none")))
            exported = Exported.of(workspace, pruned, plan, task.weights, self.reporter)
        return self.counted(plan, pruned, exported, data)

    def counted(self, plan: Plan, pruned: Program, exported: Exported, data: Data) -> TestedPlan:
        """Count the classes of a network on the confirming images."""
        workspace, task = self.workspace, self.task
        original = workspace.original_classes(data)
        classes = compare_classes(workspace.program, original, exported.file, data, self.reporter, "confirm")
        cost = workspace.costs(task.prepared, task.weights, task.exclude).of(self.of)
        _, sizes = selection(task.prepared.program, plan.validate(task.prepared.program))
        full = workspace.original_bytes if self.of == "bytes" else workspace.program.parameter_count()
        return TestedPlan(plan, pruned, exported, cost(sizes, plan.bits) / full, classes)

    def boldest(self, plans: Sequence[Plan]) -> Promise[TestedPlan]:
        """Return the boldest plan that keeps to ``max_drop``, tested one after the other.

        Args:
            plans: from the most cautious to the boldest.

        Raises:
            BudgetError: not even the most cautious one does, with confidence.
        """
        options = self.workspace.options
        drop, confidence = options.max_drop, options.confidence
        assert drop is not None

        def told(plan: Plan) -> TestedPlan:
            tested = self.test(plan)
            self.reporter.decide(
                f"{tested.kept:.1%} kept: {100 * tested.drop:.2f} points lost on {tested.classes.images} images that "
                f"chose nothing; at most {100 * drop:g} is {'' if tested.within(drop, confidence) else 'not '}confirmed"
            )
            return tested

        found = confirm((told(plan) for plan in plans), drop, confidence, self.workspace.source == PART)
        if found.outcome is None:
            raise self._unconfirmed(found, drop, confidence)
        return found

    def _unconfirmed(self, found: Promise[TestedPlan], drop: float, confidence: float) -> BudgetError:
        """Return the error of a drop that could not be confirmed, with what can be promised instead."""
        first = found.tested[0]
        takes = "no number of images like these would"
        if found.needed is not None:
            many = found.needed > MANY_IMAGES
            takes = f"{f'more than {MANY_IMAGES:,}' if many else f'about {found.needed:,}'} would"
        alone = self.task.budget is not None or self.task.replayed is not None
        subject = "the plan" if alone else "the most cautious plan"
        share = f"{first.kept:.4f}"
        way = (
            "leave --max-drop out to compile it with that promise, or --budget to look for a plan that keeps to it"
            if alone
            else f"--budget {'params=' if self.of != 'bytes' else ''}{share} compiles about that network, with what "
            "can be promised for it"
        )
        return BudgetError(
            f"{first.classes.images} images do not confirm that at most {100 * drop:g} points are lost: {subject} "
            f"keeps {first.kept:.1%} and loses {100 * first.drop:.2f} points there, which are at most "
            f"{points_at_most(first.bound(confidence))} with {confidence:.0%} confidence; {takes} confirm "
            f"{100 * drop:g} for it",
            hint=f"Give more images with --data, allow more with --max-drop, or {way}.",
        )


__all__ = ["Confirmation", "TestedPlan", "check_promise", "no_promise"]
