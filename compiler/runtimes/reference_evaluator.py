"""ONNX's reference evaluator, which is part of the package ``onnx``: every operator as the specification words it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
import onnx
from onnx import version_converter
from onnx.reference import ReferenceEvaluator

from svitc.onnx.model_info import read_proto
from svitc.runtimes.base import File, Runtime, Session

DEQUANTIZES_SINCE = 19  # the first opset whose DequantizeLinear the evaluator has


class Reference(Runtime):
    """The evaluator in ``onnx.reference``, which is written in NumPy and slow."""

    name = "reference"
    title = "ONNX's reference evaluator"
    loads = f"It is that of onnx {onnx.__version__}."

    def missing(self) -> None:
        """Return None: svitc depends on it."""

    def version(self) -> str:
        """Return the installed version."""
        return version("onnx")

    def _open(self, model: File, threads: int | None, batch: int | None) -> Session:
        proto = read_proto(model)
        opset = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
        if opset < DEQUANTIZES_SINCE and any(node.op_type == "DequantizeLinear" for node in proto.graph.node):
            proto = version_converter.convert_version(proto, DEQUANTIZES_SINCE)
        return _ReferenceSession(self.label, ReferenceEvaluator(proto))


class _ReferenceSession(Session):
    """A file in the reference evaluator."""

    def __init__(self, runtime: str, evaluator: ReferenceEvaluator) -> None:
        super().__init__(runtime)
        self.evaluator = evaluator
        self.input_names, self.output_names = list(evaluator.input_names), list(evaluator.output_names)

    def _run(self, names: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(value) for value in self.evaluator.run(names, dict(feed))]
