"""The driver: what a command does first: load, capture and check a model, look at it, open what was written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from svitc.data.inputs import random_inputs
from svitc.errors import UnsupportedError
from svitc.frontends import LoadOptions, load_model
from svitc.frontends.capture.capture import capture
from svitc.frontends.capture.model_rewrites import reference
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.ir.verifier import check
from svitc.passes.pipelines import canonical_passes
from svitc.serialization.writer import load_program
from svitc.support.renamed import renamed_keywords
from svitc.support.reporter import Reporter

__all__ = ["check_capture", "load", "run_canonical_passes"]


def check_capture(model: nn.Module, program: Program, seed: int = 0) -> float:
    """Largest difference between the eager model's logits and the captured program's on a random input: 0.0.

    Raises:
        UnsupportedError: they differ, so that the capture is not the model.
    """
    images = 1 if program.info.get("fixed") else 2  # the model's own mistake is none for one image at a time
    x = random_inputs(program, images, images, seed)[0]
    want = reference(model, program, x)
    got = program(x)
    difference = float((got - want).abs().max()) if got.shape == want.shape else float("inf")
    if difference != 0.0:
        raise UnsupportedError(
            f"the captured program differs from the model by {difference:g} on a random input",
            hint="The model does something that depends on values, on the batch or on earlier calls; please report it.",
        )
    return difference


def run_canonical_passes(program: Program) -> Pipeline:
    """Bring a freshly captured program to the form in which its groups are as free as they can be."""
    check(program, "capture")
    pipeline = Pipeline(canonical_passes())
    pipeline(program)
    return pipeline


@renamed_keywords(fix="rewrite_model")
def load(
    path: Path | str,
    *,
    reporter: Reporter | None = None,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    time_steps: int | None = None,
    trust_pickle: bool = False,
    ema: bool = False,
    rewrite_model: bool = False,
) -> Program:
    """Load, capture and check a checkpoint: a program whose groups are ready to be pruned.

    Args:
        path: a checkpoint, or an output folder of svitc.
        reporter: told of the stages.
        arch: ``module:factory`` or ``path/to/file.py:factory``: code that the user vouches for.
        arch_args: arguments of the factory, JSON values.
        input_shape: ``(C, H, W)`` for images, ``(T, C, H, W)`` for event frames.
        time_steps: how often a static image is shown.
        trust_pickle: unpickle a whole model, which runs code from the file.
        ema: take the averaged weights that a training script saved beside the last ones.
        rewrite_model: let ``capture`` mend what is wrong in the model's own code, where it offers to.

    Raises:
        InputError: not a checkpoint, or one that does not fit its architecture.
        UnsupportedError: a model that cannot be represented, with its file and line.
    """
    reporter, path = reporter or Reporter(), Path(path)
    if (path / "model.safetensors").is_file():
        with reporter.stage("load"):
            return load_program(path / "model.safetensors")
    with reporter.stage("load"):
        options = LoadOptions(arch, arch_args, input_shape, time_steps, trust_pickle, ema, rewrite_model)
        loaded = load_model(path, options)
    with reporter.stage("capture"), loaded.callable_within():
        program = capture(loaded.model, loaded.input, loaded.info, rewrite_model)
        check_capture(loaded.model, program)
    with reporter.stage("analyse"):
        run_canonical_passes(program)
    output = next(iter(reversed(program.graph.nodes)))
    program.info["num_classes"] = program.shape_of(output)[-1]
    return program
