"""Application of a plan: prune, refit and round a network, and give its weights the type that is stored."""

from __future__ import annotations

from svitc.driver.prepare import Prepared, Workspace
from svitc.driver.report import WeightsReport
from svitc.driver.report_sections import weights_report
from svitc.ir.program import Program
from svitc.passes.pipelines import quantize
from svitc.passes.pruning.prune import Prune
from svitc.passes.pruning.prune_tokens import PruneTokens
from svitc.passes.quantization.round_weights import RoundWeights
from svitc.planning.plan import Plan
from svitc.support.reporter import Reporter


def apply_plan(workspace: Workspace, prepared: Prepared, plan: Plan, refit: str) -> Program:
    """Return a pruned copy of the prepared program, refitted and rounded as the plan says.

    Args:
        workspace: gives the images, where the refit or the rounding uses them.
        prepared: the program that the plan is for.
        plan: what to keep, and the bits of weights.
        refit: ``none``, ``batch-norm``, ``readers`` or ``full``.

    Raises:
        InputError: images are needed, and there are none.
    """
    if refit != "none" or (plan.bits and plan.provenance.get("rounding") == "calibrated"):
        sweep = workspace.sweep(prepared, plan.provenance.get("data") == "synthetic")
        return without_tokens(sweep.build(plan, refit), plan)
    return prune_and_round(prepared.program, plan)


def prune_and_round(program: Program, plan: Plan) -> Program:
    """Return a pruned copy of a program, with weights rounded to the plan's bits without images."""
    pruned = program.copy()
    Prune(plan)(pruned)
    if plan.bits:
        RoundWeights(plan.bits)(pruned)
    return without_tokens(pruned, plan)


def without_tokens(pruned: Program, plan: Plan) -> Program:
    """Return a program, changed in place, that runs the plan's tokens alone."""
    if plan.tokens:
        PruneTokens(plan)(pruned)
    return pruned


def quantized(pruned: Program, plan: Plan, weights: str, reporter: Reporter) -> tuple[Program, WeightsReport]:
    """Return the program with weights of the stored type, and the report's section on them."""
    if weights == "fp32":
        return pruned, WeightsReport("fp32")
    with reporter.stage("quantize"):
        final, pipeline = quantize(pruned, plan.bits)
        return final, weights_report(final, pipeline)


__all__ = ["apply_plan", "prune_and_round", "quantized"]
