"""The float network behind the integer weights of an output folder, made again of the model that was compiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from svitc.driver.apply import prune_and_round
from svitc.driver.options import PreparationOptions
from svitc.driver.prepare import prepare
from svitc.errors import InputError
from svitc.ir.program import Program, Stage
from svitc.passes.quantization.round_weights import RoundWeights
from svitc.planning.plan import Plan
from svitc.support.json_text import parse_json
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict


def read_report(folder: Path) -> JsonDict:
    """Return the report of an output folder; empty where there is none.

    Raises:
        InputError: report.json is not a JSON object, or parts of it that are read are none.
    """
    path = folder / "report.json"
    if not path.is_file():
        return {}
    try:
        report = parse_json(path.read_bytes())
    except ValueError as error:
        raise InputError(f"the report {path} is not JSON: {error}") from error
    if not isinstance(report, dict):
        raise InputError(f"the report {path} is not a JSON object")
    for key in ("verify", "promise"):
        if not isinstance(report.get(key) or {}, dict):
            raise InputError(f"the report {path} is not as svitc writes it: {key} is not a JSON object")
    return report


def float_network(folder: Path, program: Program, against: Path, model: Program, reporter: Reporter) -> Program:
    """Return the float network that was quantized, before its weights were rounded to integers.

    Args:
        folder: an output folder.
        program: its program.
        against: the model that was compiled; or, where the folder's weights were refitted on images, a folder that was
            compiled by the same plan with float weights.
        model: the program of ``against``.
        reporter: told about the stages.

    Raises:
        InputError: the folder has float weights, or the float network cannot be made again.
    """
    if program.stage != Stage.QUANTIZED:
        raise InputError(f"{folder} has float weights: there is no quantization to check", hint="Leave --against out.")
    if model.stage == Stage.QUANTIZED:
        raise InputError(f"{against} has integer weights itself", hint="Give the original checkpoint with --against.")
    plan = Plan.load(folder / "plan.json")
    reason = _lost(plan, read_report(folder))
    if reason is not None:
        raise InputError(
            f"the float network behind {folder} cannot be made again: {reason}",
            hint="The two were compared when the folder was compiled; its report.json has the result.",
        )
    model = replace(model, info={key: value for key, value in model.info.items() if key != "input_range"})
    if "input_range" in program.info:  # which may have been declared, or measured on images
        model.info["input_range"] = program.info["input_range"]
    if _keeps_the_same(plan, against):  # it has been pruned and refitted
        rounded = model.copy()
        RoundWeights(plan.bits)(rounded)
        return rounded
    removes = any(not mask.all() for mask in plan.keep.values())  # otherwise nothing was refitted
    if removes and plan.provenance.get("refit", "none") != "none":
        raise InputError(
            f"the weights in {folder} were refitted on images after channels were removed",
            hint=f"Compile the same plan with float weights, on the same images (svitc compile MODEL --plan "
            f"{folder}/plan.json --weights fp32), and give that folder with --against.",
        )
    options = PreparationOptions(plan.provenance.get("reparam", "off"), plan.provenance.get("clean", "off"))
    return prune_and_round(prepare(model, options, reporter).program, plan)


def _keeps_the_same(plan: Plan, against: Path) -> bool:
    """Return whether a path is an output folder whose plan keeps the same channels and tokens."""
    path = against / "plan.json"
    if not path.is_file():
        return False
    first, second = Plan.load(path), plan
    return first.to_json()["groups"] == second.to_json()["groups"] and (first.tokens, first.ranks) == (
        second.tokens,
        second.ranks,
    )


def _lost(plan: Plan, report: JsonDict) -> str | None:
    """Return why the float network that was quantized is not at hand any more, or None."""
    if report.get("finetune"):
        return "it was fine-tuned, and its float weights were not kept"
    if plan.bits and plan.provenance.get("rounding") == "calibrated":
        return "weights of few bits were rounded on images, and the other weights compensate for it"
    return None


__all__ = ["float_network", "read_report"]
