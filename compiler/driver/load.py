"""Loading: from a checkpoint, or a model in memory, to a program that is checked against the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svitc.driver.capture_check import check_capture
from svitc.driver.eager import attach_eager_model
from svitc.errors import UnsupportedError, UsageError
from svitc.frontends import LoadOptions, load_model
from svitc.frontends.capture.capture import capture as capture_graph
from svitc.frontends.checkpoint.wrappers import unwrapped
from svitc.ir.graph import InputSpec
from svitc.ir.outputs import class_scores, output_values
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.ir.verifier import check
from svitc.passes.pipelines import canonical_passes
from svitc.quantization.grids import layers_on_grids
from svitc.serialization.writer import is_program, load_program
from svitc.support.atomic_files import settle
from svitc.support.names import as_path
from svitc.support.renamed import renamed_keywords
from svitc.support.reporter import Reporter
from svitc.support.types import JsonMapping

__all__ = ["capture", "check_capture", "load", "run_canonical_passes"]
INPUT_FORM = (
    "Give a batch of images [N, C, H, W], a batch of event frames [T, N, C, H, W], or an InputSpec without the batch, "
    "such as svitc.InputSpec((3, 224, 224))."
)


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
    reporter, path = reporter or Reporter(), as_path(path, "the checkpoint")
    settle(path)
    if is_program(path / "model.safetensors"):
        with reporter.stage("load"):
            return load_program(path / "model.safetensors")
    with reporter.stage("load"):
        options = LoadOptions(arch, arch_args, input_shape, time_steps, trust_pickle, ema, rewrite_model)
        loaded = load_model(path, options)
    with reporter.stage("capture"), loaded.callable_within():
        program = capture_graph(loaded.model, loaded.input, loaded.info, rewrite_model)
        check_capture(loaded.model, program)
    attach_eager_model(program, loaded)
    return _analyzed(program, reporter)


@renamed_keywords(fix="rewrite_model", input_spec="example_input")
def capture(
    model: nn.Module,
    example_input: torch.Tensor | InputSpec | tuple[int, ...],
    info: Mapping[str, Any] | None = None,
    rewrite_model: bool = False,
    *,
    reporter: Reporter | None = None,
) -> Program:
    """Capture a model in memory and return the program that ``load`` makes of its checkpoint.

    The model is copied: later changes to either do not touch the other. It is captured as it computes in inference.

    Args:
        model: an SViT whose ``forward`` takes one tensor, ``[N, C, H, W]`` or ``[T, N, C, H, W]``, and returns
            tensors with a batch dimension, by themselves or in tuples, lists and dictionaries.
        example_input: a batch, of which only the shape counts, in the model's own layout: images ``[N, C, H, W]``, or
            event frames ``[T, N, C, H, W]`` or ``[N, T, C, H, W]``. Or the shape of one input, without the batch.
        info: what is known of the model, kept with the program: ``normalize``, ``classes``.
        rewrite_model: correct mistakes in the model's code, where svitc knows how to.
        reporter: told about the stages.

    Raises:
        UsageError: ``model`` is not a module, or ``example_input`` not a batch of images or event frames.
        UnsupportedError: the model cannot be represented; the error names file and line.
    """
    reporter = reporter or Reporter()
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"a {type(model).__name__} is not a torch.nn.Module",
            hint="Load a checkpoint with svitc.load(path); svitc.capture takes a model in memory.",
        )
    model = unwrapped(model)
    with reporter.stage("capture"):
        program = _captured(model, example_input, info, rewrite_model)
        check_capture(model, program)
    return _analyzed(program, reporter)


def _captured(
    model: nn.Module,
    example: torch.Tensor | InputSpec | tuple[int, ...],
    info: Mapping[str, Any] | None,
    rewrite_model: bool,
) -> Program:
    """Capture a model for inputs of an example's shape."""
    if isinstance(example, InputSpec):
        return capture_graph(model, example, info, rewrite_model)
    if not isinstance(example, torch.Tensor):
        whole = isinstance(example, tuple | list) and all(type(n) is int and n > 0 for n in example)
        if not whole or len(example) not in (3, 4):
            raise UsageError(f"example_input is {example!r:.80}, not an input of the model", hint=INPUT_FORM)
        return capture_graph(model, InputSpec(tuple(example)), info, rewrite_model)
    shape = tuple(example.shape)
    if len(shape) not in (4, 5) or not all(shape):
        raise UsageError(f"example_input has the shape {list(shape)}", hint=INPUT_FORM)
    if not example.is_floating_point():
        raise UsageError(f"example_input is a tensor of {example.dtype}, not of real numbers", hint=INPUT_FORM)
    if len(shape) == 4:
        return capture_graph(model, InputSpec(shape[1:]), info, rewrite_model)
    failure: UnsupportedError | None = None
    for steps, batch_first in ((shape[0], False), (shape[1], True)):  # which of the two is time, only the model knows
        try:
            program = capture_graph(model, InputSpec((steps, *shape[2:])), info, rewrite_model)
        except UnsupportedError as error:
            failure = failure or error
        else:
            if program.info.get("batch_first", False) == batch_first:
                return program
    raise failure or UnsupportedError(
        f"the model takes neither {shape[0]} nor {shape[1]} time steps, as example_input of {list(shape)} may have",
        hint=INPUT_FORM,
    )


def _analyzed(program: Program, reporter: Reporter) -> Program:
    """Bring a program that has been checked to its canonical form; note its classes, and layers trained on grids."""
    with reporter.stage("analyse"):
        run_canonical_passes(program)
    grids = layers_on_grids(program)
    if grids:
        program.info["grids"] = grids
    scores = class_scores(program.graph, program.info)
    if scores is not None:
        program.info["num_classes"] = program.shape_of(output_values(program.graph)[scores.index])[-1]
    return program
