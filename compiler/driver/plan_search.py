"""The plan search: ask a policy for plans until the size or latency of the exported file meets the budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from svitc.driver.apply import Exported, apply_plan, complete, prune_and_round, quantized, with_provenance
from svitc.driver.confirm import Confirmation, TestedPlan, no_promise
from svitc.driver.prepare import WHOLE, Workspace
from svitc.driver.ranks import rank_choices
from svitc.driver.task import Task
from svitc.errors import BudgetError, InternalError, UsageError
from svitc.evaluation.promise import Promise
from svitc.evaluation.sweep import Sweep
from svitc.ir.channel_slicing import selection
from svitc.ir.outputs import class_scores
from svitc.ir.program import Program
from svitc.latency.budget_search import within_latency
from svitc.latency.paired_timer import paired_timer
from svitc.passes.policies import Problem
from svitc.passes.policies.policy import Policy
from svitc.planning.budget import Budget
from svitc.planning.plan import Plan
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

MAX_ATTEMPTS = 8  # one is nearly always enough; each further plan is at least one channel smaller


@dataclass(frozen=True)
class SearchedPlan:
    """The result of a plan search.

    Attributes:
        plan: the plan, with the bits of weights and its provenance.
        pruned: the program after the plan was applied, where the search has built it.
        exported: what was exported of that program.
        timing: entries on a search by latency in the report's ``budget``.
        promise: the tests of plans for ``max_drop``; None where there is none, or nothing can be promised.
    """

    plan: Plan
    pruned: Program | None = None
    exported: Exported | None = None
    timing: JsonDict = field(default_factory=dict)
    promise: Promise[TestedPlan] | None = None

    @property
    def source(self) -> str:
        """Where the images came from that the plan was chosen on: see ``Workspace.source``."""
        return str(self.plan.provenance.get("data", WHOLE))

    @property
    def refit(self) -> str:
        """The refit of the pruned network: ``none``, ``batch-norm``, ``readers`` or ``full``."""
        return str(self.plan.provenance.get("refit", "none"))


def search_plan(workspace: Workspace, policy: Policy, task: Task, reporter: Reporter) -> SearchedPlan:
    """Return the plan for a task: the one to replay, or the policy's for the budget.

    Raises:
        BudgetError: no plan meets the budget, or none within ``max_drop``.
        InputError: a plan that is replayed does not fit the program.
    """
    budget = task.budget
    if task.replayed is not None:
        searched = SearchedPlan(task.replayed)
        made_for = task.replayed.provenance.get("weights", task.weights)
        if made_for != task.weights:
            reporter.decide(
                f"the plan was made for {made_for} weights, and this file has {task.weights}: see --weights"
            )
    elif budget is not None and budget.of == "latency":
        searched = _within_time(workspace, policy, task, budget, reporter)
    elif task.limit is None and workspace.options.max_drop is not None:
        return _within_drop(workspace, policy, task, reporter)
    else:
        searched = _within_limit(workspace, policy, task, task.limit, task.of, reporter)
    plan = _prepared_as(task, searched.plan)
    if budget is not None:
        plan.provenance["budget"] = budget.text
    plan = complete(workspace, task, plan, reporter, replayed=task.replayed is not None)
    return _confirmed(workspace, task, replace(searched, plan=plan), reporter)


def _prepared_as(task: Task, plan: Plan) -> Plan:
    """Return a copy of a plan that says how the program was prepared, with the tokens of the task."""
    preparation = task.prepared.options
    plan = replace(plan, tokens=plan.tokens or task.tokens)
    return with_provenance(plan, reparam=preparation.reparam, clean=preparation.remove_dead_channels)


def _confirmed(workspace: Workspace, task: Task, searched: SearchedPlan, reporter: Reporter) -> SearchedPlan:
    """Test the plan for a budget, where there is a ``max_drop`` that can be promised.

    Raises:
        BudgetError: the images do not confirm that it keeps to the drop.
    """
    if workspace.options.max_drop is None:
        return searched
    reason = no_promise(workspace.program, workspace.options)
    if reason is not None:
        reporter.decide(f"nothing is promised: {reason}")
        return searched
    of = task.budget.of if task.budget is not None and task.budget.of == "parameters" else "bytes"
    found = Confirmation(workspace, task, of, reporter).boldest([searched.plan])
    tested = found.outcome
    assert tested is not None
    return replace(searched, plan=tested.plan, pruned=tested.pruned, exported=tested.exported, promise=found)


def _within_drop(workspace: Workspace, policy: Policy, task: Task, reporter: Reporter) -> SearchedPlan:
    """Return the smallest plan that is confirmed to keep to ``max_drop``; if none can be, by the choosing images.

    Raises:
        BudgetError: there is none.
    """
    problem = pose(workspace, task, None, "bytes", reporter)
    reason = no_promise(workspace.program, workspace.options)

    def finished(plan: Plan) -> Plan:
        return _prepared_as(task, _marked(workspace, policy, plan))

    if reason is not None:
        reporter.decide(f"nothing is promised: {reason}; the drop is measured on the images that choose the plan")
        with reporter.stage("plan"):
            plan = finished(_plan_of(policy, problem))
        return SearchedPlan(complete(workspace, task, plan, reporter))
    with reporter.stage("plan"):
        ladder = [finished(_checked(policy, plan)) for plan in policy.ladder(problem)]
    if not ladder:
        raise BudgetError("no plan makes this network smaller", hint="Allow more with --max-drop.")
    found = Confirmation(workspace, task, "bytes", reporter).boldest(ladder)
    tested = found.outcome
    assert tested is not None
    return SearchedPlan(tested.plan, tested.pruned, tested.exported, promise=found)


def _plan_of(policy: Policy, problem: Problem) -> Plan:
    """Return a policy's plan; the policy may be the user's own."""
    return _checked(policy, policy.plan(problem))


def _checked(policy: Policy, plan: object) -> Plan:
    """Return what a policy returned, which is a plan.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(plan, Plan):
        raise UsageError(
            f"policy {policy.name!r} returned {type(plan).__name__}, not a plan",
            hint="Its plan() returns an svitc.Plan.",
        )
    return plan


def pose(workspace: Workspace, task: Task, limit: int | None, of: str, reporter: Reporter) -> Problem:
    """Return a policy's problem: keep at most ``limit`` bytes or parameters, or as little as ``max_drop`` allows.

    Args:
        workspace: gives costs, weight types and the sweep.
        task: the task of the compilation.
        limit: the most bytes or parameters that may be kept, or None.
        of: what the limit counts, ``bytes`` or ``parameters``.
        reporter: told about decisions.
    """
    prepared, mixed = task.prepared, task.weights == "mixed"
    problem = Problem(
        prepared.program,
        workspace.costs(prepared, task.weights, task.exclude).of(of),
        limit,
        of,
        max_drop=workspace.options.max_drop,
        reporter=reporter,
        bits=workspace.weight_types(prepared, task.weights, task.exclude).narrow if mixed else None,
        ranks=rank_choices(prepared.program, task),
    )
    if workspace.options.sampled:

        def measuring() -> Sweep:
            sweep = workspace.sweep(prepared)
            for remark in sweep.remarks:
                reporter.decide(remark)
            return sweep

        problem.measuring = measuring
        problem.evaluations = lambda: workspace.evaluations
        problem.calibrating = lambda: measuring().calibration
        drop, counts_classes = problem.max_drop, class_scores(prepared.program.graph, prepared.program.info) is not None
        if drop is not None and workspace.options.metric is not None:
            reporter.decide(f"max-drop bounds what the metric loses: at most {drop:g}")
        elif drop is not None and not counts_classes:
            reporter.decide(
                f"max-drop bounds the relative squared error of the outputs, as no single one scores classes: at most "
                f"{100 * drop:g}%"
            )
        elif drop is not None and not workspace.options.choosing_by_labels:
            reporter.decide(
                f"max-drop bounds the share of images that get another class than the original's, right or wrong, as "
                f"there are no labels: at most {100 * drop:g}%"
            )
    return problem


def _within_limit(
    workspace: Workspace, policy: Policy, task: Task, limit: int | None, of: str, reporter: Reporter
) -> SearchedPlan:
    """Return a plan within a limit; plan and export again until the bytes of the exported file meet it as well."""
    slack = stored = 0
    for _ in range(MAX_ATTEMPTS):
        problem = pose(workspace, task, None if limit is None else limit - slack, of, reporter)
        with reporter.stage("plan"):
            plan = replace(_marked(workspace, policy, _plan_of(policy, problem)), tokens=task.tokens)
        if limit is None or of != "bytes":
            return SearchedPlan(plan)
        with reporter.stage("prune"):
            plan = complete(workspace, task, plan, reporter)
            # scales that differ much are stored in a wider type, so the bytes of quantized weights depend on the refit
            refit = str(plan.provenance["refit"]) if task.weights != "fp32" else "none"
            pruned = apply_plan(workspace, task.prepared, plan, refit)
            exported = Exported.of(workspace, pruned, plan, task.weights, reporter)
            stored = exported.stored_bytes
        if stored <= limit or task.whole:
            if refit != plan.provenance["refit"]:
                return SearchedPlan(plan)
            return SearchedPlan(plan, pruned, exported)
        _, sizes = selection(problem.program, plan.validate(problem.program))
        # the cost model ignores shape constants, of which the file stores equal ones once, and the table of raw input
        slack = max(slack + 1, stored - problem.cost(sizes, plan.bits, plan.ranks))
    raise InternalError(f"the written file stays {stored - (limit or 0)} bytes above the budget")


def _marked(workspace: Workspace, policy: Policy, plan: Plan) -> Plan:
    """Return a copy of a plan that says how it is refitted, and which images it looked at, for a replay."""
    plan = with_provenance(plan, refit=policy.refit)
    looked = policy.refit != "none" or workspace.opened_sweep is not None
    if looked and workspace.source != WHOLE:
        plan = with_provenance(plan, data=workspace.source)
    return plan


def _within_time(workspace: Workspace, policy: Policy, task: Task, budget: Budget, reporter: Reporter) -> SearchedPlan:
    """Return a plan whose exported file is measured to meet a latency budget."""
    original, target, seed = workspace.program, workspace.options.target, workspace.options.seed

    def make(limit: int) -> Plan:
        plan = _within_limit(workspace, policy, task, limit, "parameters", reporter).plan
        return complete(workspace, task, plan, reporter, replayed=True)

    def build(plan: Plan) -> bytes:  # without a refit, which does not change the latency
        pruned = prune_and_round(task.prepared.program, plan)
        return workspace.export(quantized(pruned, plan, task.weights, reporter)[0])

    plan, timing = within_latency(
        budget,
        original.parameter_count(),
        make,
        build,
        lambda: paired_timer(
            workspace.export(quantized(original, Plan({}), task.weights, reporter)[0]), original, target, seed, reporter
        ),
        reporter,
    )
    return SearchedPlan(plan, timing=timing)


__all__ = ["SearchedPlan", "pose", "search_plan"]
