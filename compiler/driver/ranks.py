"""Which layers a compilation may store as two of a low rank, and what the report says of them."""

from __future__ import annotations

from svitc.analysis.calibration import WIDEST
from svitc.driver.task import Task
from svitc.ir import ops
from svitc.ir.channel_slicing import selection
from svitc.ir.low_rank import ranked_layers, saves
from svitc.ir.program import Program
from svitc.planning.plan import Plan
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

LEAST_SHARE = 0.05  # of the parameters that a layer has; what smaller ones could save is not worth measuring


def rank_choices(program: Program, task: Task) -> dict[str, int]:
    """Return the largest ranks of the layers that a plan may give lower ones: with float weights, and to save memory.

    Integer weights need layers that read spikes, and two layers are rarely faster than one.
    """
    if task.weights != "fp32" or (task.budget is not None and task.budget.of == "latency"):
        return {}
    ranks, least = ranked_layers(program), LEAST_SHARE * program.parameter_count()
    return {
        str(node.target): ranks[str(node.target)]
        for node in program.graph.nodes
        if str(node.target) in ranks
        and ops.is_projection(module := program.module_of(node))
        and module.weight[0].numel() <= WIDEST
        and module.weight.numel() >= least
    }


def ranks_report(program: Program, plan: Plan) -> JsonDict | None:
    """Return the rank, outputs and inputs (all taps counted) of each layer that is stored as two; None without any."""
    if not plan.ranks:
        return None
    chosen, _ = selection(program, plan.validate(program))
    report = {}
    for node in program.graph.nodes:
        layer = str(node.target)
        module = program.module_of(node)
        if layer in plan.ranks and ops.is_projection(module):
            kept = [chosen(dim) for dim in program.parameters_of(node)["weight"][:2]]
            outputs, inputs = (
                size if index is None else len(index) for size, index in zip(module.weight.shape[:2], kept, strict=True)
            )
            inputs *= module.weight[0, 0].numel()
            if saves(plan.ranks[layer], outputs, inputs):
                report[layer] = {"rank": plan.ranks[layer], "outputs": outputs, "inputs": inputs}
    return report or None


def explain_ranks(program: Program, plan: Plan, reporter: Reporter) -> None:
    """Report which layers are stored as two, with what that saves, and which are not, since it would save nothing."""
    report = ranks_report(program, plan) or {}
    for layer, rank in plan.ranks.items():
        if layer not in report:
            reporter.decide(f"{layer} stays one layer: two of rank {rank:,} would have no fewer weights")
            continue
        outputs, inputs = report[layer]["outputs"], report[layer]["inputs"]
        reporter.decide(
            f"{layer} is stored as two convolutions, of rank {rank} of {min(outputs, inputs)}: {outputs * inputs:,} "
            f"weights become {rank * (outputs + inputs):,}"
        )


__all__ = ["explain_ranks", "rank_choices", "ranks_report"]
