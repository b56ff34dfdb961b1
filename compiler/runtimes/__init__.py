"""Stock runtimes that run a written file: what each is, whether it is here, and how it keeps spikes exact.

Imports: ``onnx`` and what is below it.

Start with ``base.py``; each runtime has a file of its own, and ``registry.py`` lists them.
"""

from svitc.runtimes.base import Runtime, Session
from svitc.runtimes.onnx_runtime import OnnxRuntime
from svitc.runtimes.registry import ONNX_RUNTIME, RUNTIMES, runtime_of, session

__all__ = ["ONNX_RUNTIME", "RUNTIMES", "OnnxRuntime", "Runtime", "Session", "runtime_of", "session"]
