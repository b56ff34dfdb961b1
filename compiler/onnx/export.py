"""Export a program to an ONNX model, through the passes that every written file goes through."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from svitc import onnx as backend
from svitc.ir.program import Program, required_program
from svitc.onnx.declared import check_declared
from svitc.onnx.static_batch import check_batch, with_static_batch
from svitc.onnx.target import CPU, Target
from svitc.passes.pipelines import exportable_program, step_program


def exportable(program: Program, target: Target = CPU, keep: bool = True, per_step: bool = False) -> ir.Model:
    """Return the ONNX model of a trainable or quantized program.

    Args:
        program: the program to export.
        target: what the file is written for.
        keep: leave the program unchanged; otherwise it is consumed, which saves a copy.
        per_step: leave class scores as they are at each time step; otherwise they are averaged.

    Raises:
        UnsupportedError: a node has no kernel in the target's runtime.
    """
    twin = exportable_program(program, keep, per_step, recompile=False)
    model = backend.lower(twin, target)
    if keep:
        twin.release()  # it was a copy, and the model has what it needs
    check_declared(model, target)
    return model


def export(
    program: Program,
    target: str = "cpu",
    narrowest: int | None = None,
    *,
    functions: bool = False,
    per_step: bool = False,
    static_batch: int | None = None,
) -> bytes:
    """Return the ONNX file of a trainable or quantized program, which is left unchanged.

    Args:
        program: the program to export.
        target: a key of ``TARGETS``: the runtime that must have a kernel for every node.
        narrowest: smallest number of bits in which the file may store a weight.
        functions: write each neuron as one node that calls a model-local function, which viewers show as one but many
            runtimes do not read.
        per_step: leave class scores as they are at each time step; otherwise they are averaged.
        static_batch: number of images that every batch will have, for runtimes that need to know it; None for any.

    Raises:
        UsageError: the target is unknown, ONNX cannot store weights in that number of bits, or batches are empty.
    """
    required_program(program)
    check_batch(static_batch)
    resolved = backend.target_of(target, narrowest, functions)  # first: a wrong name is refused before the passes run
    file = _file(exportable(program, resolved, per_step=per_step))
    return file if static_batch is None else with_static_batch(file, static_batch)


def export_step(program: Program, target: Target = CPU, per_step: bool = False) -> bytes:
    """Return the streaming ONNX file of a trainable or quantized program, which is left unchanged.

    Args:
        program: the program to export.
        target: what the file is written for.
        per_step: leave class scores as they are at each time step; otherwise they are averaged over the steps so far.

    Raises:
        UnsupportedError: an operation needs several time steps at once, or a node has no kernel in the target's
            runtime.
    """
    twin = step_program(program, per_step)
    model = backend.lower(twin, target, streaming=True)
    twin.release()
    check_declared(model, target)
    return _file(model)


def _file(model: ir.Model) -> bytes:
    """Return the bytes of a model, which is not used again."""
    file = backend.to_bytes(model)
    backend.forget_weights(model)
    return file


def export_proto(program: Program) -> onnx.ModelProto:
    """Return the ONNX model of a program, which is consumed; its outputs have the program's shapes."""
    return ir.to_proto(exportable(program, keep=False, per_step=True))
