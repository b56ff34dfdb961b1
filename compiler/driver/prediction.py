"""The prediction: how much accuracy a compiled network loses, where no labels can tell.

If the original is as often right as it is confident, the accuracy that another choice of class loses is the difference
of the two classes' probabilities, by the original: its regret (Measurement). That needs no labels. On real images, the
regret is the loss that was found for the networks of benchmarks/no_data.py. On synthetic images it is higher, since the
original is less confident there, and close calls turn over more easily.
"""

from __future__ import annotations

import math
from dataclasses import replace

from svitc.driver.plan_search import search_plan
from svitc.driver.prepare import Workspace
from svitc.driver.report import PredictionReport
from svitc.driver.task import Task
from svitc.errors import BudgetError
from svitc.evaluation.evaluator import Measurement
from svitc.evaluation.sweep import Sweep
from svitc.ir.outputs import class_scores
from svitc.passes.policies.policy import Policy
from svitc.planning.plan import Plan
from svitc.support.reporter import Reporter

# share of the regret that is really lost, by (images, whether weights are only rounded): chosen on two checkpoints of
# benchmarks/no_data.py. Rounding errs at random, and turns wrong answers into right ones as well.
LOSS_PER_REGRET = {
    ("synthetic", False): 0.6,
    ("synthetic", True): 0.25,
    ("unlabeled", False): 1.0,
    ("unlabeled", True): 0.4,
}
FACTOR = 2.0  # of the prediction either way: nearly all real losses are in between
TOO_SMALL = 0.01  # predicted loss below which one loss cannot be told from another, or from none
LARGE = 0.05  # predicted loss that the user is warned of
RECOMMENDED = 0.02  # predicted loss of the smallest budget that is recommended
HALVINGS = 5  # of the range between the budget and the original


def lost_accuracy(point: Measurement, basis: str, rounded: bool) -> float:
    """Return the predicted loss of top-1 accuracy, a share.

    Args:
        point: what was measured.
        basis: the images that it was measured on, ``synthetic`` or ``unlabeled``.
        rounded: whether weights are rounded to fewer than 8 bits and no channels are removed.
    """
    return LOSS_PER_REGRET[basis, rounded] * max(0.0, point.regret)


def predict(workspace: Workspace, policy: Policy, task: Task, plan: Plan, exported: bytes) -> PredictionReport | None:
    """Predict what an exported file loses, from the images that plans are chosen on.

    Args:
        workspace: gives the sweep.
        policy: makes the plans of other budgets, to recommend one.
        task: the task of the compilation.
        plan: the plan of the file.
        exported: the file.

    Returns:
        None where labels tell, where no output scores classes or a metric of the user's counts, where plans are chosen
        without images, or where nothing is left out or rounded to few bits.
    """
    options = workspace.options
    if not options.sampled or options.choosing_by_labels or options.metric is not None:
        return None
    if class_scores(workspace.program.graph, workspace.program.info) is None:
        return None
    if not _pruned(plan) and min(plan.bits.values(), default=8) >= 8:
        return None
    sweep = workspace.sweep(task.prepared)
    basis = "synthetic" if options.synthetic else "unlabeled"
    with workspace.reporter.stage("predict"):
        point = sweep.evaluator.measure_file(exported)
    loss = lost_accuracy(point, basis, not _pruned(plan))
    recommended = None
    if loss > LARGE:
        with workspace.reporter.stage("look for a budget that loses less"):
            recommended = _recommended(workspace, policy, task, sweep, basis)
    return PredictionReport(
        basis=basis,
        images=point.images,
        agreement=1 - point.drop,
        divergence=point.divergence,
        regret=point.regret,
        loss=loss,
        interval=(loss / FACTOR, min(1.0, loss * FACTOR)),
        too_small=loss < TOO_SMALL,
        large=loss > LARGE,
        recommended=recommended,
    )


def _recommended(workspace: Workspace, policy: Policy, task: Task, sweep: Sweep, basis: str) -> float | None:
    """Return the smallest budget, a share, whose predicted loss is small; None without a budget in bytes or parameters.

    The file would have the same type of weights. Plans of other budgets cost little: the sweep knows their parts.
    """
    searched = task.replayed is None and not task.tokens and not policy.chooses_bits
    if task.limit is None or task.budget is None or not searched:
        return None
    costs = workspace.costs(task.prepared, task.weights, task.exclude).of(task.budget.of)
    original = workspace.original_bytes if task.budget.of == "bytes" else workspace.program.parameter_count()
    low, high = task.limit, costs()
    silent = Reporter(workspace.reporter.on_progress)
    for _ in range(HALVINGS):
        middle = (low + high) // 2
        try:
            plan = search_plan(workspace, policy, replace(task, limit=middle), silent).plan
        except BudgetError:
            low = middle
            continue
        point = sweep([plan], str(plan.provenance.get("refit", "none")), "smaller loss")[0]
        if lost_accuracy(point, basis, not _pruned(plan)) <= RECOMMENDED:
            high = middle
        else:
            low = middle
    return math.ceil(high / original * 100) / 100


def _pruned(plan: Plan) -> bool:
    return bool(plan.tokens or plan.ranks) or any(not mask.all() for mask in plan.keep.values())
