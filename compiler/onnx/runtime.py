"""Run a file in a stock ONNX Runtime, on the CPU."""

from __future__ import annotations

import os

import onnxruntime

from svitc.errors import InputError
from svitc.onnx.target import FLOATS_SINCE, SINCE

ERRORS_ONLY = 3


def session(model: bytes | str | os.PathLike, threads: int | None = None) -> onnxruntime.InferenceSession:
    """A session with all of ONNX Runtime's own optimizations and nothing registered beside them.

    Args:
        model: the file's path or its bytes.
        threads: threads within one operator, by default one for each core.

    Raises:
        InputError: the runtime cannot load the model.
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
            hint=f"Files of svitc need ONNX Runtime {FLOATS_SINCE} or later, {SINCE[8]} with weights of 8 bits, "
            f"{SINCE[4]} with 4 and {SINCE[2]} with 2; --min-weight-bits 8 stores them wider.",
        ) from error
