"""Runners take turns, and what their times come to.

Rounds are paired: each runs every runner once, so that what disturbs the machine disturbs all. A runner is a
process of its own (bench_worker.py), and between two of them there is a pause: threads of ONNX Runtime and OpenMP spin
for a while after their work is done, on the processors that the next one needs. Switching the spinning off would do
that as well, but would time no runtime as it comes. What a pause and the others' turns leave behind (threads asleep, cold
caches) is made up for by one untimed run before the timed one, wherever that is affordable. Seen with spikformer_ti on
two processors, one of them shared: medians were within 4% of each runner's alone, with or without the pause; without
the untimed run eager PyTorch took 12% longer and an ONNX file 17%.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from svitc.bench.environment import BackgroundLoad, environment
from svitc.bench.worker import Failed, Runner, Worker
from svitc.support.reporter import Reporter

PAUSE_S = 0.02
UNTIMED_BELOW_S = 3.0  # that the slowest takes
PROFILED_RUNS = 5


def row(runner: Runner, reason: str | None = None) -> dict[str, Any]:
    """Return a row without times. Its ``reason`` says why it stays so."""
    empty: dict[str, Any] = dict.fromkeys(
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
) -> dict[str, Any]:
    """Run runners in turn; rows in their order, the first of which the others are compared with.

    One that fails or exceeds the limit keeps a row with the reason, and the others go on.

    Args:
        runs: rounds, and so timed runs of each.
        limit: seconds that loading one, or one run, may take.
        profile: also ask the runtimes' profilers where the time goes.
        reporter: told what is being loaded, how many rounds are done, and what is profiled.
        verbose: let the runners' processes write to stderr.
    """
    reporter = reporter or Reporter()
    with contextlib.ExitStack() as stack:
        bench = _Bench(reporter, {runner.name: row(runner) for runner in runners})
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
    _summarize(bench.rows, bench.times, bench.logits)
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
    """The runners that are still running, and what is known of all.

    Attributes:
        rows: by runner.
        workers: processes that answer; one that fails is closed and left out.
        logits: by runner, of the same images.
        times: seconds of each timed run.
    """

    reporter: Reporter
    rows: dict[str, dict[str, Any]]
    workers: dict[str, Worker] = field(default_factory=dict)
    logits: dict[str, np.ndarray] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)

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

    def ask(self, name: str, what: str, *arguments: Any) -> Any:
        """Return a runner's answer, or None where it failed."""
        with _reported(self.rows[name]):
            return self.workers[name].ask(what, *arguments)
        self.workers.pop(name).close()
        return None

    def rounds(self, runs: int, repeats: int) -> None:
        """Time each runner once a round; the last of ``repeats`` runs counts."""
        for number in range(runs):
            self.reporter.progress("rounds", number, runs)
            names = list(self.workers)
            turn = number % max(1, len(names))  # so that nobody always follows the same one
            for name in names[turn:] + names[:turn]:
                time.sleep(PAUSE_S)
                seconds = self.ask(name, "run", repeats)
                if seconds is not None:
                    self.times[name].append(seconds)
        self.reporter.progress("rounds", runs, runs)

    def profiles(self) -> dict[str, Any]:
        """Return what the profilers of the runtimes that have one say."""
        profiles = {}
        for name in list(self.workers):
            self.reporter.progress(f"profile {name}", 0)
            if operators := self.ask(name, "profile", PROFILED_RUNS):
                profiles[name] = operators
        return profiles


@contextlib.contextmanager
def _reported(into: dict[str, Any]) -> Iterator[None]:
    """A failure becomes the row's reason; what comes after the ``with`` runs only then."""
    try:
        yield
    except Failed as failure:
        into["reason"] = failure.reason


def _summarize(
    rows: dict[str, dict[str, Any]], times: Mapping[str, list[float]], logits: Mapping[str, np.ndarray]
) -> None:
    first = next(iter(rows))
    reference = logits.get("eager")
    for name, each in rows.items():
        if each["reason"] or not times[name]:
            continue
        each["times_ms"] = [round(1e3 * seconds, 4) for seconds in times[name]]
        each["runs"] = len(times[name])
        each["q1_ms"], each["median_ms"], each["q3_ms"] = quartiles(each["times_ms"])
        if not rows[first]["reason"]:  # medians over rounds, not of medians: both sides of a ratio are of one moment
            pairs = zip(times[name], times[first], strict=True)
            each["ratio_q1"], each["ratio"], each["ratio_q3"] = quartiles([a / b for a, b in pairs])
        if reference is not None and logits[name].shape == reference.shape:
            each["max_logit_difference"] = float(abs(logits[name] - reference).max())


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile, to four significant figures."""
    found = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    low, middle, high = (float(f"{value:.4g}") for value in found)
    return low, middle, high
