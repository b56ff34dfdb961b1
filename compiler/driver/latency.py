"""Latency of a program on this machine: a prediction, a measurement, and what else ran meanwhile."""

from __future__ import annotations

from typing import Any

from svitc.bench.environment import BackgroundLoad
from svitc.ir.program import Program
from svitc.latency.predict import predict
from svitc.support.reporter import Reporter


def predict_undisturbed(program: Program, weights: str, threads: int | None, reporter: Reporter) -> dict[str, Any]:
    """Predict and measure the latency of the exported file, and watch what other processes take meanwhile.

    Args:
        program: one that trains, or a quantized one.
        weights: ``fp32`` or ``int8``.
        threads: of ONNX Runtime; None for one a processor.

    Returns:
        What ``svitc.latency.predict.predict`` returns, and ``other_processes``: how many processors other processes kept
        busy, or None where that cannot be read.
    """
    others = BackgroundLoad({})
    prediction = predict(program, weights, threads, reporter=reporter)
    return {**prediction, "other_processes": others.processors()}
