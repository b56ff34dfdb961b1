"""OpenVINO on the CPU.

Two of its defaults change numbers: where a processor has bfloat16 it computes in that, so that currents are rounded
before neurons see them, and it quantizes the activations of some matrix products. Its execution mode ``ACCURACY``
switches both off.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from svitc.onnx.model_info import read_proto, without_functions
from svitc.onnx.target import OPENVINO
from svitc.runtimes.base import File, Runtime, Session

EXACT = OPENVINO.settings


class OpenVino(Runtime):
    """OpenVINO's CPU plugin."""

    name = "openvino"
    title = "OpenVINO"
    settings = EXACT
    loads = "docs/runtimes.md says which files it loads."

    def missing(self) -> tuple[str, str] | None:
        """Return why it cannot be used here, and how to install it."""
        if importlib.util.find_spec("openvino") is not None:
            return None
        return "the package openvino is not installed", "pip install openvino"

    def version(self) -> str:
        """Return the installed version."""
        return version("openvino")

    def _open(self, model: File, threads: int | None, batch: int | None) -> Session:
        return _OpenVinoSession(self.label, read_proto(model).graph, compiled(model, threads, EXACT, batch))


def compiled(model: File, threads: int | None, settings: Mapping[str, str], batch: int | None = None) -> Any:
    """Return OpenVINO's compiled model of a file, tuned for latency.

    Args:
        model: path of the file, or its bytes.
        threads: number of threads; None for OpenVINO's own choice.
        settings: further properties.
        batch: the only size that batches will have; None for any, with which OpenVINO fuses less.
    """
    openvino: Any = importlib.import_module("openvino")
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **settings}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    proto: onnx.ModelProto = read_proto(model)
    if proto.functions:  # OpenVINO does not know what a model-local function is
        model = without_functions(proto).SerializeToString()
    source = core.read_model(model if isinstance(model, bytes) else str(Path(model)))
    if batch is not None:  # the only dimension that is open
        sizes = [[batch if size.is_dynamic else size for size in place.partial_shape] for place in source.inputs]
        source.reshape(dict(zip(source.inputs, sizes, strict=True)))
    return core.compile_model(source, "CPU", config)


class _OpenVinoSession(Session):
    """A compiled model of OpenVINO.

    Args:
        runtime: name and version of the runtime, for errors.
        graph: the file's graph, whose names OpenVINO keeps; where two outputs are one tensor it has several names.
        model: the compiled model.
    """

    def __init__(self, runtime: str, graph: onnx.GraphProto, model: Any) -> None:
        super().__init__(runtime)
        self.request = model.create_infer_request()
        stored = {tensor.name for tensor in graph.initializer}
        self.input_names = [value.name for value in graph.input if value.name not in stored]
        self.output_names = [value.name for value in graph.output]

    def _run(self, names: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        self.request.infer(dict(feed))
        return [np.array(self.request.get_tensor(name).data) for name in names]  # copied: the request reuses its buffer
