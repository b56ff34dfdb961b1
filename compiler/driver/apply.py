"""Application of a plan: prune, refit and round a network, and give its weights the type that is stored."""

from __future__ import annotations

from dataclasses import dataclass, replace

from svitc.driver.prepare import WHOLE, Prepared, Workspace
from svitc.driver.raw_input import as_asked
from svitc.driver.report import WeightsReport
from svitc.driver.report_sections import weights_report
from svitc.driver.task import Task
from svitc.errors import InputError
from svitc.ir.program import Program
from svitc.ir.quantized_modules import WIDE_BITS
from svitc.onnx import weight_bytes
from svitc.onnx.packed_state import pack_states
from svitc.onnx.static_batch import with_static_batch
from svitc.passes.pipelines import quantize
from svitc.passes.pruning.low_rank import SplitLowRank
from svitc.passes.pruning.prune import Prune
from svitc.passes.pruning.prune_tokens import PruneTokens
from svitc.passes.quantization.round_weights import RoundWeights
from svitc.planning.plan import Plan
from svitc.support import human
from svitc.support.reporter import Reporter
from svitc.training.finetune import Finetuned


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
        sweep = workspace.sweep(prepared, str(plan.provenance.get("data", WHOLE)))
        return rebuilt(sweep.build(plan, refit), plan)
    return prune_and_round(prepared.program, plan)


def prune_and_round(program: Program, plan: Plan) -> Program:
    """Return a pruned copy of a program, with weights rounded to the plan's bits without images."""
    pruned = program.copy()
    Prune(plan)(pruned)
    if plan.bits:
        RoundWeights(plan.bits)(pruned)
    return rebuilt(pruned, plan)


def rebuilt(pruned: Program, plan: Plan) -> Program:
    """Return a program, changed in place, that runs the plan's tokens alone, and stores layers of a low rank as two."""
    if plan.tokens:
        PruneTokens(plan)(pruned)
    if plan.ranks:
        SplitLowRank(plan.ranks)(pruned)
    return pruned


def quantized(pruned: Program, plan: Plan, weights: str, reporter: Reporter) -> tuple[Program, WeightsReport]:
    """Return the program with weights of the stored type, and the report's section on them."""
    if weights == "fp32":
        return pruned, WeightsReport("fp32")
    with reporter.stage("quantize"):
        final, pipeline = quantize(pruned, plan.bits)
        return final, weights_report(final, pipeline, weights)


@dataclass(frozen=True)
class Applied:
    """A network after its plan was applied.

    Attributes:
        pruned: the pruned program, which can still be trained; fine-tuned where that was asked for.
        tuned: the result of fine-tuning, or None.
    """

    pruned: Program
    tuned: Finetuned | None


@dataclass(frozen=True)
class Exported:
    """A pruned network with weights of the stored type, and its file.

    Attributes:
        program: the program.
        weights: the report's section on the weights.
        file: the ONNX file of all time steps, for batches of any size.
        plain: the file as it is written, perhaps a streaming file, perhaps for batches of one size, but with
            normalized floats as its input.
        written: the same, perhaps with bytes as its input.
    """

    program: Program
    weights: WeightsReport
    file: bytes
    plain: bytes
    written: bytes

    @classmethod
    def of(cls, workspace: Workspace, pruned: Program, plan: Plan, weights: str, reporter: Reporter) -> Exported:
        """Give the weights of a pruned program the type that is stored, and export it."""
        options = workspace.options
        final, row = quantized(pruned, plan, weights, reporter)
        file = workspace.export(final)
        plain = workspace.export_step(final) if options.streaming else file
        plain = plain if options.static_batch is None else with_static_batch(plain, options.static_batch)
        plain = pack_states(plain) if options.packed_state else plain
        return cls(final, row, file, plain, as_asked(final, plain, options))

    @property
    def stored_bytes(self) -> int:
        """Bytes of all constants in the file that is written: weights, scales, shapes, and what takes raw input."""
        return weight_bytes(self.written)


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
    if plan.ranks:
        raise InputError(
            "the plan gives layers a low rank, which integer weights cannot have: the second of two layers would read "
            "real numbers",
            hint="Take the bits or the ranks out of it." if plan.bits else "Compile it with --weights fp32.",
        )
    types = workspace.weight_types(task.prepared, task.weights, task.exclude)
    plan.validate(task.prepared.program)
    types.check(plan.bits)
    if not plan.bits and types.spared:
        which = f"{', '.join(types.spared)} {human.agree(len(types.spared), 'keeps', 'keep')}"
        reporter.decide(f"{which} 8 bits: what the first layers get wrong passes through all others")
    plan = replace(with_provenance(plan, weights=task.weights), bits=plan.bits or types.same)
    if not replayed and any(width != WIDE_BITS for width in plan.bits.values()):
        plan.provenance["rounding"] = "calibrated" if workspace.options.sampled else "nearest"
        if workspace.source != WHOLE:
            plan.provenance["data"] = workspace.source
    if plan.bits and plan.provenance.get("rounding") == "nearest":
        reporter.decide("weights go to the nearest numbers; with --data rounding looks at images, and loses less")
    return plan


def with_provenance(plan: Plan, **defaults: object) -> Plan:
    """Return a copy of a plan, with entries added to its provenance that it does not have yet."""
    provenance = dict(plan.provenance)
    for name, value in defaults.items():
        provenance.setdefault(name, value)
    return replace(plan, provenance=provenance)


__all__ = ["Applied", "Exported", "apply_plan", "complete", "prune_and_round", "quantized", "with_provenance"]
