"""Loading: read a checkpoint, capture its model as a program, and check the program against the model."""

from __future__ import annotations

from pathlib import Path

from svitc.driver.capture_check import check_capture
from svitc.frontends import LoadOptions, load_model
from svitc.frontends.capture.capture import capture
from svitc.ir.outputs import class_scores, output_values
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.ir.verifier import check
from svitc.passes.pipelines import canonical_passes
from svitc.serialization.writer import is_program, load_program
from svitc.support.renamed import renamed_keywords
from svitc.support.reporter import Reporter
from svitc.support.types import JsonMapping

__all__ = ["check_capture", "load", "run_canonical_passes"]


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
    scores = class_scores(program.graph, program.info)
    if scores is not None:
        program.info["num_classes"] = program.shape_of(output_values(program.graph)[scores.index])[-1]
    return program
