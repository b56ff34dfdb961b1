"""ONNX Runtime on the CPU, with all of its optimizations and without any custom operators.

When it loads a file it plans which values share memory. For each value it looks through a list of all those that are
free by then, which grows with the number of time steps, so that planning takes time in the square of it. A session for
a few runs does without: values are still freed after their last use, and the arena gives their memory to others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime

from svitc.onnx.target import FLOATS_SINCE, SINCE
from svitc.runtimes.base import File, Runtime, Session

ERRORS_ONLY = 3  # ONNX Runtime's log severity level


class OnnxRuntime(Runtime):
    """ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    loads = (
        f"Files that svitc writes need ONNX Runtime {FLOATS_SINCE} or later; {SINCE[8]} or later with 8-bit weights, "
        f"{SINCE[4]} with 4-bit and {SINCE[2]} with 2-bit weights. --min-weight-bits 8 stores all quantized weights in "
        "8 bits."
    )

    def missing(self) -> None:
        """Return None: svitc depends on it."""

    def version(self) -> str:
        """Return the installed version."""
        return onnxruntime.__version__

    def options(self, threads: int | None = None) -> onnxruntime.SessionOptions:
        """Return session options that are the defaults but for the number of threads, and log errors only."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        if threads is not None:
            options.intra_op_num_threads = threads
        return options

    def _open(self, model: File, threads: int | None, batch: int | None) -> Session:
        return self._session(model, self.options(threads))

    def _open_for_few_runs(self, model: File, threads: int | None, batch: int | None) -> Session:
        options = self.options(threads)
        options.enable_mem_reuse = False
        return self._session(model, options)

    def _session(self, model: File, options: onnxruntime.SessionOptions) -> Session:
        return _OnnxRuntimeSession(self.label, opened(model, options))


def opened(model: File, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Open a file in ONNX Runtime on the CPU.

    The session has a copy of the weights of its own. Its Python side keeps the file's bytes all the same, to open them
    again with other providers, which nobody asks for here.
    """
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session._model_bytes = None
    return session


class _OnnxRuntimeSession(Session):
    """A session of ONNX Runtime."""

    def __init__(self, runtime: str, session: onnxruntime.InferenceSession) -> None:
        super().__init__(runtime)
        self.session = session
        self.input_names = [value.name for value in session.get_inputs()]
        self.output_names = [value.name for value in session.get_outputs()]

    def _run(self, names: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self.session.run(names, dict(feed))
