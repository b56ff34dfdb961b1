"""The prediction: how much accuracy a compiled network loses, where no labels can tell.

What can be measured without labels is how far the class probabilities of the written file are from the original's, on
the images that the plan was chosen on. Over the networks and budgets of benchmarks/no_data.py the lost accuracy is
nearly proportional to this divergence while it is small, and saturates:

    loss = LIMIT (1 - exp(-LOSS_PER_NAT divergence / LIMIT))
"""

from __future__ import annotations

import math

from svitc.driver.plan_search import Task, search_plan
from svitc.driver.prepare import Workspace
from svitc.driver.report import PredictionReport
from svitc.errors import BudgetError
from svitc.evaluation.sweep import Sweep
from svitc.passes.policies.policy import Policy
from svitc.planning.plan import Plan
from svitc.support.reporter import Reporter

LOSS_PER_NAT = {"synthetic": 0.6, "unlabeled": 0.6}  # share of images that are lost for each nat of divergence
LIMIT = 0.6  # as much is lost where nothing is left but chance, over the trained checkpoints
FACTOR = 2.0  # of the prediction either way: nearly all real losses are in between
TOO_SMALL = 0.006  # share of the images: smaller predictions do not tell one loss from another
LARGE = 0.05  # predicted loss that the user is warned of
RECOMMENDED = 0.02  # predicted loss of the smallest budget that is recommended
HALVINGS = 5  # of the range between the budget and the original


def lost_accuracy(divergence: float, basis: str) -> float:
    """Return the top-1 accuracy that is lost, a share, for a divergence in nats.

    Args:
        divergence: of the class probabilities from the original's.
        basis: what it was measured on, ``synthetic`` or ``unlabeled`` images.
    """
    return LIMIT * (1 - math.exp(-LOSS_PER_NAT[basis] * max(0.0, divergence) / LIMIT))


def predict(workspace: Workspace, policy: Policy, task: Task, plan: Plan, exported: bytes) -> PredictionReport | None:
    """Predict what an exported file loses, from the images that plans are chosen on.

    Args:
        workspace: gives the sweep.
        policy: makes the plans of other budgets, to recommend one.
        task: the task of the compilation.
        plan: the plan of the file.
        exported: the file.

    Returns:
        None where labels tell, where plans are chosen without images, or where nothing is left out or rounded to few
        bits.
    """
    options = workspace.options
    if not options.sampled or options.choosing_by_labels:
        return None
    changed = any(not mask.all() for mask in plan.keep.values()) or min(plan.bits.values(), default=8) < 8
    if not changed:
        return None
    sweep = workspace.sweep(task.prepared)
    basis = "synthetic" if options.synthetic else "unlabeled"
    with workspace.reporter.stage("predict"):
        point = sweep.evaluator.measure_file(exported)
    loss = lost_accuracy(point.divergence, basis)
    return PredictionReport(
        basis=basis,
        images=point.images,
        agreement=1 - point.drop,
        divergence=point.divergence,
        loss=loss,
        interval=(loss / FACTOR, min(1.0, loss * FACTOR)),
        too_small=loss < TOO_SMALL,
        large=loss > LARGE,
        recommended=_recommended(workspace, policy, task, sweep, basis) if loss > LARGE else None,
    )


def _recommended(workspace: Workspace, policy: Policy, task: Task, sweep: Sweep, basis: str) -> float | None:
    """Return the smallest budget, a share, whose predicted loss is small; None without a budget in bytes or parameters.

    The file would have the same type of weights. Plans of other budgets cost little: the sweep knows their parts.
    """
    if task.limit is None or task.budget is None or task.replayed is not None or policy.chooses_bits:
        return None
    costs = workspace.costs(task.prepared, task.weights, task.exclude).of(task.budget.of)
    original = workspace.original_bytes if task.budget.of == "bytes" else workspace.program.parameter_count()
    low, high = task.limit, costs()
    silent = Reporter(workspace.reporter.on_progress)
    for _ in range(HALVINGS):
        middle = (low + high) // 2
        try:
            plan = search_plan(workspace, policy, _with_limit(task, middle), silent).plan
        except BudgetError:
            low = middle
            continue
        point = sweep([plan], str(plan.provenance.get("refit", "none")), "smaller loss")[0]
        if lost_accuracy(point.divergence, basis) <= RECOMMENDED:
            high = middle
        else:
            low = middle
    return math.ceil(high / original * 100) / 100


def _with_limit(task: Task, limit: int) -> Task:
    return Task(task.prepared, task.budget, limit, task.weights, task.exclude)
