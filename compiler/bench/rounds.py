"""Rounds of a benchmark, in which runners take turns, and statistics of their times.

Every round runs each runner once, so that other load on the machine affects all alike, and ratios of times are taken
within a round. Each runner has a process of its own (worker.py). Between two runs there is a pause, as threads of ONNX
Runtime and OpenMP spin for a while after their work, on the processors that the next runner needs. (Spinning could be
switched off, but then runtimes would not be timed with their default settings.) After the pause and the turns of the
others, threads are asleep and caches are cold, so that each timed run follows an untimed one unless that takes too
long. Measured with spikformer_ti on two processors, one of them shared: medians were within 4% of those of each
runner alone, with and without the pause; without the untimed run, eager PyTorch took 12% and an ONNX file 17% longer.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from svitc.bench.environment import BackgroundLoad
from svitc.bench.worker import Failed, Runner, Worker
from svitc.support.environment import environment
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

PAUSE_S = 0.02
UNTIMED_BELOW_S = 3.0  # if the slowest runner takes less, each timed run follows an untimed one
PROFILED_RUNS = 5


def empty_row(runner: Runner, reason: str | None = None) -> JsonDict:
    """Return a row without times; its ``reason`` says why it will have none, if that is known."""
    empty: JsonDict = dict.fromkeys(
        (
            "median_ms",
            "q1_ms",
            "q3_ms",
            "ratio",
            "ratio_q1",
            "ratio_q3",
            "memory_bytes",
            "nodes",
            "weight_bytes",
            "version",
            "max_logit_difference",
            "prepare_seconds",
        )
    )
    return {"name": runner.name, "reason": reason, **empty, "runs": 0, "times_ms": [], **runner.facts}


def run_rounds(
    runners: Sequence[Runner],
    runs: int,
    limit: float = 600.0,
    profile: bool = False,
    reporter: Reporter | None = None,
    verbose: bool = False,
    reference: str = "eager",
) -> JsonDict:
    """Run runners in turn and return the report on their times, as JSON values.

    A runner that fails or exceeds the time limit keeps a row with the reason, and the others go on.

    Args:
        runners: What to time; rows are in this order, and the first is what the others are compared with.
        runs: Number of rounds; each runner has one timed run per round.
        limit: Seconds that a runner may take to load, or for one run.
        profile: Also profile operators, for runtimes that have a profiler.
        reporter: Told what is being loaded, how many rounds are done, and what is profiled.
        verbose: Let the runners' processes write to stderr.
        reference: The runner whose logits those of the others are compared with, where it is there.
    """
    reporter = reporter or Reporter()
    with contextlib.ExitStack() as stack:
        bench = _Bench(reporter, {runner.name: empty_row(runner) for runner in runners})
        for runner in runners:  # one after the other, as loading takes memory and every processor
            bench.load(runner, limit, verbose, stack)
        estimates = [seconds for name in list(bench.workers) if (seconds := bench.ask(name, "run", 1)) is not None]
        repeats = 2 if max(estimates, default=0.0) < UNTIMED_BELOW_S else 1
        others = BackgroundLoad(bench.workers)
        bench.rounds(runs, repeats)
        disturbance = others.processors()
        for name in list(bench.workers):
            bench.rows[name]["memory_bytes"] = bench.ask(name, "memory")
        profiles = bench.profiles() if profile else {}
    _summarize(bench.rows, bench.times, bench.logits, reference)
    for name, calls in bench.calls.items():
        bench.rows[name]["calls_ms"] = [[round(1e3 * seconds, 4) for seconds in run] for run in calls]
    return {
        "runs": runs,
        "untimed_run_before_each": repeats > 1,
        "other_processes": disturbance,
        "environment": environment(),
        "rows": list(bench.rows.values()),
        **({"profile": profiles} if profile else {}),
    }


@dataclass
class _Bench:
    """The state of a benchmark.

    Attributes:
        reporter: Told what is being done.
        rows: Runner -> row of the report.
        workers: Runner -> process; a process that fails is closed and removed.
        logits: Runner -> logits, all of the same images.
        times: Runner -> seconds of each timed run.
        calls: Runner -> for each timed run the seconds of each call, where a run is several.
    """

    reporter: Reporter
    rows: dict[str, JsonDict]
    workers: dict[str, Worker] = field(default_factory=dict)
    logits: dict[str, np.ndarray] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    calls: dict[str, list[list[float]]] = field(default_factory=dict)

    def load(self, runner: Runner, limit: float, verbose: bool, stack: contextlib.ExitStack) -> None:
        """Start a runner's process and wait until it is ready; the stack closes it."""
        name = runner.name
        self.times[name] = []
        self.reporter.progress(f"load {name}", 0)
        worker = Worker(runner, limit, verbose)
        stack.callback(worker.close)
        with _reported(self.rows[name]):
            loaded = worker.answer()
            self.workers[name] = worker
            self.logits[name] = loaded.pop("logits")
            self.rows[name] |= loaded | {"prepare_seconds": round(loaded["prepare_seconds"], 1)}

    def ask(self, name: str, request: str, *arguments: object) -> Any:
        """Return a runner's answer to a request (see ``Worker.ask``), or None where it failed."""
        with _reported(self.rows[name]):
            return self.workers[name].ask(request, *arguments)
        self.workers.pop(name).close()
        return None

    def rounds(self, runs: int, repeats: int) -> None:
        """Time each runner once a round; the last of ``repeats`` runs counts."""
        for number in range(runs):
            self.reporter.progress("rounds", number, runs)
            names = list(self.workers)
            turn = number % max(1, len(names))  # so that no runner always follows the same one
            for name in names[turn:] + names[:turn]:
                time.sleep(PAUSE_S)
                seconds = self.ask(name, "run", repeats)
                if seconds is not None:
                    self.times[name].append(seconds)
                    if calls := self.ask(name, "calls"):
                        self.calls.setdefault(name, []).append(calls)
        self.reporter.progress("rounds", runs, runs)

    def profiles(self) -> JsonDict:
        """Return runner -> operators with their times, for runtimes that have a profiler."""
        profiles = {}
        for name in list(self.workers):
            self.reporter.progress(f"profile {name}", 0)
            if operators := self.ask(name, "profile", PROFILED_RUNS):
                profiles[name] = operators
        return profiles


@contextlib.contextmanager
def _reported(row: JsonDict) -> Iterator[None]:
    """Turn a failure into the row's reason; statements after a ``with`` block that returns run only on failure."""
    try:
        yield
    except Failed as failure:
        row["reason"] = failure.reason


def _summarize(
    rows: dict[str, JsonDict], times: Mapping[str, list[float]], logits: Mapping[str, np.ndarray], reference: str
) -> None:
    """Add statistics to the rows.

    Args:
        rows: Runner -> row of the report; changed in place.
        times: Runner -> seconds of each timed run.
        logits: Runner -> logits, all of the same images.
        reference: The runner whose logits those of the others are compared with.
    """
    first = next(iter(rows))
    compared = logits.get(reference)
    for name, row in rows.items():
        if row["reason"] or not times[name]:
            continue
        row["times_ms"] = [round(1e3 * seconds, 4) for seconds in times[name]]
        row["runs"] = len(times[name])
        row["q1_ms"], row["median_ms"], row["q3_ms"] = quartiles(row["times_ms"])
        if not rows[first]["reason"]:  # quartiles of ratios within a round, not a ratio of medians
            pairs = zip(times[name], times[first], strict=True)
            row["ratio_q1"], row["ratio"], row["ratio_q3"] = quartiles([a / b for a, b in pairs])
        if compared is not None:
            values, expected = _both_averaged(logits[name], compared)
            if values.shape == expected.shape:
                row["max_logit_difference"] = float(abs(values - expected).max())


def _both_averaged(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two results of one model with both averaged over time, if one of them is.

    Files that svitc writes average class scores ``[T, N, classes]``, the model itself does not.
    """
    return a.mean(0) if a.ndim == b.ndim + 1 else a, b.mean(0) if b.ndim == a.ndim + 1 else b


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile, rounded to four significant figures."""
    cuts = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    low, middle, high = (float(f"{value:.4g}") for value in cuts)
    return low, middle, high
