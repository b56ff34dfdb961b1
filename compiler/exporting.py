"""Export: from a program that trains to an ONNX model, by the pipelines that every written file goes through."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from . import onnx as backend
from . import passes as passes_
from .pass_base import Pipeline
from .program import Program


def exportable(program: Program, keep: bool = True) -> ir.Model:
    """The ONNX model of a program that trains.

    Args:
        keep: leave the program as it is; else it is used up.
    """
    twin = program.copy() if keep else program
    Pipeline([*passes_.inference(), *passes_.lowering()])(twin)
    return backend.lower(twin)


def export(program: Program) -> bytes:
    """The ONNX file of a program that trains; the program is not changed."""
    return backend.to_bytes(exportable(program))


def export_proto(program: Program) -> onnx.ModelProto:
    """The ONNX model of a program that is used up by it."""
    return ir.to_proto(exportable(program, keep=False))
