"""Verification in one call, of a file or its bytes: each kind of program by the check that is made for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from svitc.data.inputs import Data, inputs_of
from svitc.errors import InputError, UsageError
from svitc.ir.program import Program, Stage, required_program
from svitc.onnx.model_info import read_proto
from svitc.onnx.raw_input import without_raw_input
from svitc.onnx.states import states_of
from svitc.runtimes import ONNX_RUNTIME, Runtime
from svitc.support.names import as_path
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify as verify_floats
from svitc.verification.raw_input_check import check_raw_input
from svitc.verification.verdict import Verdict

BATCH = 32  # images of a data set that are compared at once


def verify(
    program: Program,
    exported: bytes | Path | str,
    inputs: Iterable[torch.Tensor] | torch.Tensor | Data,
    progress: Callable[[int], None] | None = None,
    runtime: Runtime = ONNX_RUNTIME,
    all_inputs: bool = True,
) -> Verdict:
    """Compare an exported file with the program that it was exported from.

    Args:
        program: the reference: one that can be trained, or a quantized one. ``Compiled.program`` is that of its file.
        exported: the ONNX file, or its path.
        inputs: batches in the program's input layout, one batch, or what ``svitc.open_data`` returns.
        progress: called with the number of images done.
        runtime: runs the file.
        all_inputs: whether to use all inputs, not only those that tell more than the ones before (informative.py).

    Returns:
        the differences in each layer and in the outputs.

    Raises:
        InputError: the file cannot be read, is not of this program, or the runtime cannot run it.
        UsageError: the file runs one time step per call.
    """
    batches = inputs_of(required_program(program), inputs, BATCH)
    file = _bytes(exported)
    if states_of(read_proto(file)) is not None:
        raise UsageError(
            "the file runs one time step per call", hint="svitc verify FOLDER checks it, against all steps at once."
        )
    _check_kind(program, file)
    raw_input, file = check_raw_input(program, file, runtime), without_raw_input(file)
    if program.stage >= Stage.QUANTIZED:
        verdict = verify_exact(program, file, batches, progress, None, runtime, all_inputs)
    else:
        verdict = verify_floats(program, file, batches, progress, runtime, all_inputs)
    verdict.raw_input = raw_input
    return verdict


def _check_kind(program: Program, file: bytes) -> None:
    """Raise InputError where one of a program and a file has integer weights, and the other float ones."""
    quantized = program.stage >= Stage.QUANTIZED
    weights = next((entry.value for entry in read_proto(file).metadata_props if entry.key == "weights"), None)
    if weights is not None and (weights != json.dumps("fp32")) != quantized:
        ours = "integer" if quantized else "float"
        raise InputError(
            f"the file's weights are {weights}, but the program has {ours} ones",
            hint="Compare a file with the program that it was exported from: Compiled.program, or svitc.load(folder).",
        )


def _bytes(exported: bytes | Path | str) -> bytes:
    """Return the bytes of an exported file. Raises InputError where it cannot be read."""
    if isinstance(exported, bytes):
        return exported
    path = as_path(exported, "the exported file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
