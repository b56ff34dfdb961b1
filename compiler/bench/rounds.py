"""Contestants run in turn, and what their times come to.

Rounds are paired: each runs every contestant once, so that what disturbs the machine disturbs all. A contestant is a
process of its own (worker.py), and between two of them there is a pause: threads of ONNX Runtime and OpenMP spin
for a while after their work is done, on the processors that the next one needs. Switching the spinning off would do
that as well, but would time no runtime as it comes. What a pause and the others' turns leave behind (threads asleep,
cold caches) is made up for by one untimed run before the timed one, wherever that is affordable. Seen with
spikformer_ti on two processors, one of them shared: medians were within 4% of each contestant's alone, with or without
the pause; without the untimed run eager PyTorch took 12% longer and an ONNX file 17%.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from svitc.bench.environment import BackgroundLoad, environment
from svitc.bench.worker import Failed, Runner, Worker
from svitc.support.timing import Progress

PAUSE = 0.02  # s
UNTIMED_BELOW = 3.0  # s that the slowest takes
PROFILED_RUNS = 5


def row(contestant: Runner, reason: str | None = None) -> dict[str, Any]:
    """A row without times. Its ``reason`` says why it stays so."""
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
    return {"name": contestant.name, "reason": reason, **empty, "runs": 0, "times_ms": [], **contestant.facts}


def run_rounds(
    contestants: Sequence[Runner],
    runs: int,
    limit: float = 600.0,
    profile: bool = False,
    progress: Progress | None = None,
    loud: bool = False,
) -> dict[str, Any]:
    """Run contestants in turn; rows in their order, the first of which the others are compared with.

    One that fails or exceeds the limit keeps a row with the reason, and the others go on.

    Args:
        runs: rounds, and so timed runs of each.
        limit: seconds that loading one, or one run, may take.
        profile: also ask the runtimes' profilers where the time goes.
        loud: let the contestants' processes write to stderr.
    """
    show = progress or (lambda stage, done, of: None)
    rows = {each.name: row(each) for each in contestants}
    logits: dict[str, np.ndarray] = {}
    times: dict[str, list[float]] = {each.name: [] for each in contestants}
    workers: dict[str, Worker] = {}
    with contextlib.ExitStack() as stack:
        for each in contestants:  # one after the other, as loading takes memory and every processor
            show(f"load {each.name}", 0, None)
            worker = Worker(each, limit, loud)
            stack.callback(worker.close)
            with _reported(rows[each.name]):
                loaded = worker.answer()
                workers[each.name] = worker
                logits[each.name] = loaded.pop("logits")
                rows[each.name] |= loaded | {"prepare_seconds": round(loaded["prepare_seconds"], 1)}

        def ask(name: str, what: str, *arguments: Any) -> Any:
            with _reported(rows[name]):
                return workers[name].ask(what, *arguments)
            workers.pop(name).close()
            return None

        estimates = [seconds for name in list(workers) if (seconds := ask(name, "run", 1)) is not None]
        repeats = 2 if max(estimates, default=0.0) < UNTIMED_BELOW else 1
        others = BackgroundLoad(workers)
        for number in range(runs):
            show("rounds", number, runs)
            names = list(workers)
            turn = number % max(1, len(names))  # so that nobody always follows the same one
            for name in names[turn:] + names[:turn]:
                time.sleep(PAUSE)
                seconds = ask(name, "run", repeats)
                if seconds is not None:
                    times[name].append(seconds)
        show("rounds", runs, runs)
        disturbance = others.processors()
        for name in list(workers):
            rows[name]["memory_bytes"] = ask(name, "memory")
        found: dict[str, Any] = {}
        for name in list(workers) if profile else []:
            show(f"profile {name}", 0, None)
            if operators := ask(name, "profile", PROFILED_RUNS):
                found[name] = operators
    _summarize(rows, times, logits)
    return {
        "runs": runs,
        "untimed_run_before_each": repeats > 1,
        "other_processes": disturbance,
        "environment": environment(),
        "rows": list(rows.values()),
        **({"profile": found} if profile else {}),
    }


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
