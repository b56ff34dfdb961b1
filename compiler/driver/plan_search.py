"""The plan search: ask a policy for plans until the size or latency of the exported file meets the budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from svitc import onnx as backend
from svitc.driver.apply import apply_plan, prune_and_round, quantized
from svitc.driver.prepare import Prepared, Workspace
from svitc.driver.report import WeightsReport
from svitc.errors import InternalError, UsageError
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
class Task:
    """The task of one compilation.

    Attributes:
        prepared: the program that the plan is for.
        budget: the budget, or None.
        limit: the most bytes or parameters that may be kept, or None.
        weights: type of the stored weights.
        exclude: globs over ignored layers, which are not changed.
        replayed: the plan to replay, or None.
        whole: whether nobody set a limit, so that every channel stays.
        tokens: token stage -> positions of the tokens that run; empty where all do.
    """

    prepared: Prepared
    budget: Budget | None
    limit: int | None
    weights: str
    exclude: tuple[str, ...] = ()
    replayed: Plan | None = None
    whole: bool = False
    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """A pruned network with weights of the stored type, and its file.

    Attributes:
        program: the program.
        weights: the report's section on the weights.
        file: the ONNX file, for batches of any size.
    """

    program: Program
    weights: WeightsReport
    file: bytes

    @classmethod
    def of(cls, workspace: Workspace, pruned: Program, plan: Plan, weights: str, reporter: Reporter) -> Exported:
        """Give the weights of a pruned program the type that is stored, and export it."""
        final, row = quantized(pruned, plan, weights, reporter)
        return cls(final, row, workspace.export(final))


@dataclass(frozen=True)
class SearchedPlan:
    """The result of a plan search.

    Attributes:
        plan: the plan, with the bits of weights and its provenance.
        pruned: the program after the plan was applied, where the search has built it.
        exported: what was exported of that program.
        timing: entries on a search by latency in the report's ``budget``.
    """

    plan: Plan
    pruned: Program | None = None
    exported: Exported | None = None
    timing: JsonDict = field(default_factory=dict)

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
    elif budget is not None and budget.of == "latency":
        searched = _within_time(workspace, policy, task, budget, reporter)
    else:
        of = budget.of if budget is not None else "bytes"
        searched = _within_limit(workspace, policy, task, task.limit, of, reporter)
    preparation = task.prepared.options
    plan = _with(searched.plan, reparam=preparation.reparam, clean=preparation.remove_dead_channels)
    if budget is not None:
        plan.provenance["budget"] = budget.text
    return replace(searched, plan=complete(workspace, task, plan, reporter, replayed=task.replayed is not None))


def complete(workspace: Workspace, task: Task, plan: Plan, reporter: Reporter, replayed: bool = False) -> Plan:
    """Return a plan with what its policy left open: the bits of a uniform weight type, and the kind of rounding.

    Args:
        workspace: gives the weight types.
        task: the task of the compilation.
        plan: a policy's plan, or one to replay.
        reporter: told where weights are rounded without images.
        replayed: whether the plan is replayed, so that its kind of rounding does not change.

    Raises:
        InputError: the plan does not fit the program.
    """
    if task.weights == "fp32":
        return plan
    types = workspace.weight_types(task.prepared, task.weights, task.exclude)
    plan.validate(task.prepared.program)
    types.check(plan.bits)
    plan = replace(_with(plan, weights=task.weights), bits=plan.bits or types.same)
    if not replayed and plan.bits:
        plan.provenance["rounding"] = "calibrated" if workspace.options.sampled else "nearest"
        if workspace.options.synthetic:
            plan.provenance["data"] = "synthetic"
    if plan.bits and plan.provenance.get("rounding") == "nearest":
        reporter.decide("weights go to the nearest numbers; with --data rounding looks at images, and loses less")
    return plan


def _plan_of(policy: Policy, problem: Problem) -> Plan:
    """Return a policy's plan.

    Raises:
        UsageError: the policy, which may be the user's own, returns something else.
    """
    plan: object = policy.plan(problem)
    if not isinstance(plan, Plan):
        raise UsageError(
            f"policy {policy.name!r} returned {type(plan).__name__}, not a plan",
            hint="Its plan() returns an svitc.Plan.",
        )
    return plan


def _with(plan: Plan, **defaults: str) -> Plan:
    """Return a copy of a plan, with entries added to its provenance that it does not have yet."""
    provenance = dict(plan.provenance)
    for name, value in defaults.items():
        provenance.setdefault(name, value)
    return replace(plan, provenance=provenance)


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
            plan = replace(_with(_plan_of(policy, problem), refit=policy.refit), tokens=task.tokens)
            if workspace.options.synthetic and (policy.refit != "none" or workspace.opened_sweep is not None):
                plan = _with(plan, data="synthetic")  # which a replay draws again
        if limit is None or of != "bytes":
            return SearchedPlan(plan)
        with reporter.stage("prune"):
            plan = complete(workspace, task, plan, reporter)
            # scales that differ much are stored in a wider type, so the bytes of quantized weights depend on the refit
            refit = str(plan.provenance["refit"]) if task.weights != "fp32" else "none"
            pruned = apply_plan(workspace, task.prepared, plan, refit)
            exported = Exported.of(workspace, pruned, plan, task.weights, reporter)
            stored = backend.weight_bytes(exported.file)
        if stored <= limit or task.whole:
            if refit != plan.provenance["refit"]:
                return SearchedPlan(plan)
            return SearchedPlan(plan, pruned, exported)
        _, sizes = selection(problem.program, plan.validate(problem.program))
        # the cost model ignores shape constants, of which the file stores equal ones once
        slack = max(slack + 1, stored - problem.cost(sizes, plan.bits))
    raise InternalError(f"the written file stays {stored - (limit or 0)} bytes above the budget")


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


__all__ = ["SearchedPlan", "Task", "complete", "pose", "search_plan"]
