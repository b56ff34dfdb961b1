"""Run a file in stock ONNX Runtime on the CPU."""

from __future__ import annotations

import os

import onnxruntime

from svitc.errors import InputError
from svitc.onnx.target import FLOATS_SINCE, SINCE

ERRORS_ONLY = 3  # ONNX Runtime's log severity level


def session(model: bytes | str | os.PathLike, threads: int | None = None) -> onnxruntime.InferenceSession:
    """Return a session with all of ONNX Runtime's optimizations and without any custom operators.

    Args:
        model: path of the file, or its bytes.
        threads: number of threads within one operator; by default one for each core.

    Raises:
        InputError: ONNX Runtime cannot load the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    source = model if isinstance(model, bytes) else os.fspath(model)
    name = "the given bytes" if isinstance(model, bytes) else os.fspath(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no public base class
        version = onnxruntime.__version__
        raise InputError(
            f"ONNX Runtime {version} cannot load {name}: {error}",
            hint=f"Files that svitc writes need ONNX Runtime {FLOATS_SINCE} or later; {SINCE[8]} or later with 8-bit "
            f"weights, {SINCE[4]} with 4-bit and {SINCE[2]} with 2-bit weights. --min-weight-bits 8 stores all "
            "quantized weights in 8 bits.",
        ) from error
