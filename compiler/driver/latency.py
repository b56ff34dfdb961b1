"""Latency of a program on this machine: prediction, measurement, and the load of other processes."""

from __future__ import annotations

from typing import Any

from svitc.bench.environment import BackgroundLoad
from svitc.ir.program import Program
from svitc.latency.predict import predict
from svitc.support.reporter import Reporter


def predict_undisturbed(program: Program, weights: str, threads: int | None, reporter: Reporter) -> dict[str, Any]:
    """Predict and measure the latency of the exported file, and the load of other processes meanwhile.

    Args:
        program: a trainable or a quantized program.
        weights: ``fp32`` or ``int8``.
        threads: threads of ONNX Runtime; None for one per processor.
        reporter: told of the stages.

    Returns:
        The result of ``svitc.latency.predict.predict``, and ``other_processes``: how many processors other processes
        kept busy, or None where that cannot be read.
    """
    others = BackgroundLoad({})
    prediction = predict(program, weights, threads, reporter=reporter)
    return {**prediction, "other_processes": others.processors()}
