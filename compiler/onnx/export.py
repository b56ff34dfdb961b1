"""Export: from a program to an ONNX model, by the pipelines that every written file goes through."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from svitc import onnx as backend
from svitc.ir.program import Program
from svitc.passes.pipelines import exportable_program


def exportable(program: Program, keep: bool = True, target: str = "cpu", narrowest: int | None = None) -> ir.Model:
    """The ONNX model of a program that trains, or of a quantized one.

    Args:
        keep: leave the program as it is; else it is used up.
        target: ``cpu`` or ``cuda``: which of ONNX Runtime's providers has a kernel for every node.
        narrowest: the fewest bits that the file may store weights in.

    Raises:
        UsageError: there is no such target, or no such type.
    """
    made_for = backend.target_of(target, narrowest)  # before the work
    return backend.lower(exportable_program(program, keep), made_for)


def export(program: Program, target: str = "cpu", narrowest: int | None = None) -> bytes:
    """The ONNX file of a program that trains, or of a quantized one; the program is not changed.

    Raises:
        UsageError: there is no such target.
    """
    return backend.to_bytes(exportable(program, target=target, narrowest=narrowest))


def export_proto(program: Program) -> onnx.ModelProto:
    """The ONNX model of a program that is used up by it."""
    return ir.to_proto(exportable(program, keep=False))
