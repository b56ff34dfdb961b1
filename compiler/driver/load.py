"""Loading: read a checkpoint, capture its model as a program, and check the program against the model."""

from __future__ import annotations

from pathlib import Path

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
from svitc.serialization.writer import is_program, load_program
from svitc.support.renamed import renamed_keywords
from svitc.support.reporter import Reporter
from svitc.support.types import JsonMapping

__all__ = ["check_capture", "load", "run_canonical_passes"]


def check_capture(model: nn.Module, program: Program, seed: int = 0) -> float:
    """Compare the captured program with the eager model on a random input.

    Args:
        model: the eager model.
        program: the program that was captured from it.
        seed: seed of the input.

    Returns:
        The largest difference of logits, which is 0.0.

    Raises:
        UnsupportedError: the logits differ, so that the program is not the model.
    """
    # the code of a model whose mistakes ``capture`` has corrected is only right for single images
    images = 1 if program.info.get("fixed") else 2
    x = random_inputs(program, images, images, seed)[0]
    expected = reference(model, program, x)
    actual = program(x)
    difference = float((actual - expected).abs().max()) if actual.shape == expected.shape else float("inf")
    if difference != 0.0:
        raise UnsupportedError(
            f"the captured program differs from the model by {difference:g} on a random input",
            hint="The model does something that depends on values, on the batch or on earlier calls; please report it.",
        )
    return difference


def run_canonical_passes(program: Program) -> Pipeline:
    """Bring a captured program to its canonical form, in which as many channel groups as possible can be pruned.

    Returns:
        The pipeline that ran, with the time and the result of each pass.
    """
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
    arch_args: JsonMapping | None = None,
    input_shape: tuple[int, ...] | None = None,
    time_steps: int | None = None,
    trust_pickle: bool = False,
    ema: bool = False,
    rewrite_model: bool = False,
) -> Program:
    """Load a checkpoint and return its program, whose channel groups are ready to be pruned.

    Args:
        path: a checkpoint, or an output folder of svitc.
        reporter: told about the stages.
        arch: the model's factory, as ``module:factory`` or ``path/to/file.py:factory``. This runs its code.
        arch_args: arguments of the factory, as JSON values.
        input_shape: ``(C, H, W)`` for images, ``(T, C, H, W)`` for event frames.
        time_steps: number of time steps that a static image is shown for.
        trust_pickle: unpickle a whole model, which may run any code from the file.
        ema: use the averaged weights (EMA) that a training script saved beside the last ones.
        rewrite_model: let ``capture`` correct mistakes in the model's code, where it knows how to.

    Raises:
        InputError: the file is not a checkpoint, or does not fit its architecture.
        UnsupportedError: the model cannot be represented; the error names file and line.
    """
    reporter, path = reporter or Reporter(), Path(path)
    if is_program(path / "model.safetensors"):
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
