"""Latency of each layer of an exported file, predicted, beside the measured latency of the whole file."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from torch import fx

from svitc import onnx as backend
from svitc import runtimes
from svitc.data.inputs import random_inputs
from svitc.errors import UsageError
from svitc.ir.program import Program, Stage
from svitc.ir.quantized_modules import WEIGHTS
from svitc.latency.microbenchmarks import LARGE, UNITS, Speeds, measure_speeds
from svitc.latency.operator_costs import LayerCost, by_layer, optimized
from svitc.passes.pipelines import exportable_program, quantize
from svitc.support.hardware import processors
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

TIMED_RUNS = 10
UNTIMED_RUNS = 2  # of a new session, which warms up
MAX_THREADS = 256


def one_image(program: Program, seed: int = 0) -> np.ndarray:
    """Return the input of a timed run: one random image, or one sequence of event frames."""
    return random_inputs(program, 1, 1, seed)[0].numpy()


def milliseconds(run: Callable[[], object]) -> float:
    """Return the time of one call, in ms."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def check_settings(weights: str, threads: int | None) -> None:
    """Check the type of weights and the number of threads.

    Raises:
        UsageError: an unknown type of weights, or a number of threads out of range.
    """
    if weights not in WEIGHTS:
        raise UsageError(f"--weights {weights!r} is not a type", hint=f"Types are {', '.join(WEIGHTS)}.")
    if threads is not None and not 0 < threads <= MAX_THREADS:
        raise UsageError(
            f"--threads {threads} is not a number from 1 to {MAX_THREADS}", hint="For example --threads 2."
        )


def predict(
    program: Program,
    weights: str = "fp32",
    threads: int | None = None,
    runs: int = TIMED_RUNS,
    speeds: Callable[[int], Speeds] = measure_speeds,
    reporter: Reporter | None = None,
) -> JsonDict:
    """Predict the latency of each layer of the exported file on this machine, and measure that of the whole file.

    Args:
        program: a program that can still be trained, or a quantized one.
        weights: ``fp32`` or ``int8``; ignored for a quantized program.
        threads: threads of ONNX Runtime; by default one per processor.
        runs: timed runs of the whole file. Half of them run before the operators are timed and half after, so that
            a drift in the machine's speed affects both.
        speeds: measures the speed of operators with a number of threads.
        reporter: told about each stage.

    Returns:
        JSON values; see docs/latency.md for the keys.

    Raises:
        UsageError: an unknown type of weights, or a number of threads out of range.
    """
    check_settings(weights, threads)
    threads = processors() if threads is None else threads
    reporter = reporter or Reporter()
    reporter.progress("export", 0)
    if program.stage >= Stage.QUANTIZED:
        weights, final = "int8", program
    else:
        final = program if weights == "fp32" else quantize(program)[0]
    lowered = exportable_program(final)
    kinds = layer_kinds(lowered)
    file = backend.to_bytes(backend.lower(lowered))
    x = one_image(program)
    reporter.progress("time the file", 0)
    times = timed(file, x, threads, runs - runs // 2)
    reporter.progress("time operators", 0)
    operator_speeds = speeds(threads)
    reporter.progress("time the file", 0)
    times += timed(file, x, threads, runs // 2)
    rows = by_layer(optimized(file), operator_speeds, kinds)
    return {"weights": weights, "threads": threads, "batch": 1, "runs": runs, **_report(rows, times, operator_speeds)}


def _report(rows: Sequence[LayerCost], times: list[float], speeds: Speeds) -> JsonDict:
    """Return what was predicted and measured, as JSON values.

    Args:
        rows: one for each layer, with predicted ``seconds``.
        times: times of runs of the whole file, in ms.
        speeds: speeds of the operators.
    """
    predicted = 1e3 * sum(row["seconds"] for row in rows)
    measured = statistics.median(times)
    layers = [
        {
            "layer": row["layer"],
            "kind": row["kind"],
            "operators": row["operators"],
            "predicted_ms": round(1e3 * row["seconds"], 5),
            "share": round(1e3 * row["seconds"] / predicted, 5),
        }
        for row in rows
    ]
    return {
        "layers": layers,
        "kinds": _kinds(layers),
        "predicted_ms": round(predicted, 4),
        "measured_ms": round(measured, 4),
        "measured_times_ms": [round(ms, 4) for ms in times],
        "ratio": round(predicted / measured, 4),
        "speeds": {
            name: {
                "per_second": None if not value else float(f"{1 / value:.4g}"),
                "of": UNITS[name.removesuffix(LARGE)],
            }
            for name, value in speeds.items()
        },
    }


def timed(file: bytes, x: np.ndarray, threads: int, runs: int) -> list[float]:
    """Return the times of consecutive runs in a new session, in ms, after two untimed runs."""
    session = runtimes.session(file, threads)
    return [milliseconds(lambda: session.run(None, {backend.INPUT: x})) for _ in range(UNTIMED_RUNS + runs)][
        UNTIMED_RUNS:
    ]


def layer_kinds(program: Program) -> dict[str, str]:
    """Return layer or operation, as nodes of the exported file are named after it -> its class or function."""
    kinds = {}
    for node in program.graph.nodes:
        if node.op == "call_module":
            kinds[str(node.target)] = type(program.module_of(node)).__name__
        elif node.op == "call_function":
            kinds[_label(node)] = getattr(node.target, "__name__", "op")
    return kinds


def _label(node: fx.Node) -> str:
    """Return the name that the lowering gives to the ONNX nodes of an operation, such as ``blocks.0.add``."""
    return f"{node.meta.get('scope') or ''}.{getattr(node.target, '__name__', 'op')}".lstrip(".")


def _kinds(layers: list[JsonDict]) -> list[JsonDict]:
    """Sum rows of layers by kind, the slowest kind first."""
    kinds: dict[str, JsonDict] = {}
    for row in layers:
        total = kinds.setdefault(row["kind"], {"kind": row["kind"], "layers": 0, "predicted_ms": 0.0, "share": 0.0})
        total["layers"] += 1
        for key in ("predicted_ms", "share"):
            total[key] = round(total[key] + row[key], 5)
    return sorted(kinds.values(), key=lambda row: -row["predicted_ms"])
