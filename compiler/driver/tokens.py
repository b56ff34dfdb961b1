"""Which tokens a compilation lets run through the blocks, and what the report says of them."""

from __future__ import annotations

from svitc.driver.options import CompileOptions
from svitc.driver.prepare import Prepared, Workspace
from svitc.errors import UsageError
from svitc.ir.program import Program
from svitc.ir.token_stages import token_stages
from svitc.passes.policies.tokens import check_share, choose_tokens
from svitc.planning.plan import Plan
from svitc.planning.token_plan import kept_tokens
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict


def check_tokens(options: CompileOptions) -> None:
    """Check what the options say of tokens.

    Raises:
        UsageError: the share is none, or there are no images to choose tokens on.
    """
    if options.tokens is None:
        return
    check_share(options.tokens)
    if not options.sampled:
        raise UsageError(
            "which tokens run is chosen on images", hint="Give some with --data, or let svitc draw them (--no-data)."
        )


def running_tokens(workspace: Workspace, prepared: Prepared, reporter: Reporter) -> dict[str, tuple[int, ...]]:
    """Return the tokens that run through each stage; empty where all do.

    Args:
        workspace: gives the share and the images.
        prepared: the program that the plan is for.
        reporter: told about the stage.

    Raises:
        InputError: no tokens of the program can be pruned.
    """
    if workspace.options.tokens is None:
        return {}
    with reporter.stage("choose tokens"):
        images = workspace.sweep(prepared).calibration.inputs
        return choose_tokens(prepared.program, images, workspace.options.tokens)


def tokens_report(program: Program, plan: Plan) -> JsonDict | None:
    """Return how many tokens of each stage a plan lets run; None where it lets all run."""
    if not plan.tokens:
        return None
    stages = token_stages(program)
    kept = kept_tokens(stages, plan.tokens)
    return {stage.name: {"kept": len(kept[stage.name]), "of": stage.count} for stage in stages}


__all__ = ["check_tokens", "running_tokens", "tokens_report"]
