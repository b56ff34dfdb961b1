"""The runtimes that svitc can run a file in, by name."""

from __future__ import annotations

from svitc.errors import UsageError
from svitc.runtimes.base import File, Runtime, Session
from svitc.runtimes.onnx_runtime import OnnxRuntime
from svitc.runtimes.onnx_runtime_web import OnnxRuntimeWeb
from svitc.runtimes.openvino_cpu import OpenVino
from svitc.runtimes.reference_evaluator import Reference
from svitc.support.names import known

ONNX_RUNTIME = OnnxRuntime()
RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime for runtime in (ONNX_RUNTIME, OpenVino(), OnnxRuntimeWeb(), Reference())
}


def runtime_of(name: str) -> Runtime:
    """Return the runtime of this name.

    Raises:
        UsageError: it is unknown, or not installed.
    """
    if name not in RUNTIMES:
        raise UsageError(f"runtime {name!r} is not known", hint=known(name, RUNTIMES))
    if (absent := RUNTIMES[name].missing()) is not None:
        raise UsageError(f"{RUNTIMES[name].title} cannot be used: {absent[0]}", hint=absent[1])
    return RUNTIMES[name]


def session(model: File, threads: int | None = None) -> Session:
    """Load a file into ONNX Runtime, as ``Runtime.open`` does."""
    return ONNX_RUNTIME.open(model, threads)
