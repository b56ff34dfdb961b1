"""Timing of two files in alternation, so that other load on the machine affects both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from svitc import onnx as backend
from svitc import runtimes
from svitc.errors import UsageError
from svitc.ir.program import Program
from svitc.latency.predict import milliseconds, one_image
from svitc.runtimes import Session
from svitc.support.hardware import processors
from svitc.support.reporter import Reporter

PAIRS = (10, 30)  # smallest and largest number
CANDIDATE_S = 2.0  # time for the pairs of one candidate, where that is more than the smallest number
PAUSE_S = 0.02  # after a run, threads of a session spin for a while on the processors that the other session needs
UNTIMED_BELOW_S = 1.0  # faster files run once untimed before each timed run, which wakes up the session's threads


@dataclass(frozen=True)
class Timing:
    """Times of two files that ran in alternation.

    Attributes:
        original_ms, compiled_ms: median time of one run, on one image.
        ratio: median over pairs of the compiled file's time divided by the original's.
        pairs: number of pairs of runs.
        threads: threads of ONNX Runtime.
    """

    original_ms: float
    compiled_ms: float
    ratio: float
    pairs: int
    threads: int


Timer = Callable[[bytes], Timing]


class PairedTimer:
    """Times files beside one original, in alternation.

    Args:
        original: the file that others are compared with.
        x: the input of every run.
        threads: threads of each session.
    """

    def __init__(self, original: bytes, x: np.ndarray, threads: int) -> None:
        self.threads, self.feed = threads, {backend.INPUT: x}
        self.original = runtimes.session(original, threads)

    def __call__(self, file: bytes) -> Timing:
        """Time a file beside the original."""
        sessions = (self.original, runtimes.session(file, self.threads))
        slowest = max(self._once(session) for session in sessions)
        untimed = slowest < 1e3 * UNTIMED_BELOW_S
        pair_s = 2 * (PAUSE_S + (1 + untimed) * slowest / 1e3)
        pairs = max(PAIRS[0], min(PAIRS[1], int(CANDIDATE_S / pair_s)))
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(pairs):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                time.sleep(PAUSE_S)
                if untimed:
                    self._once(sessions[which])
                times[which].append(self._once(sessions[which]))
        ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
        return Timing(statistics.median(times[0]), statistics.median(times[1]), ratio, pairs, self.threads)

    def _once(self, session: Session) -> float:
        return milliseconds(lambda: session.run(None, self.feed))


def paired_timer(original: bytes, program: Program, target: str, seed: int, reporter: Reporter) -> Timer:
    """Return a timer that times files beside the original, on one image and with all processors.

    Args:
        original: the original's file.
        program: the original.
        target: the target that files are exported for.
        seed: seed of the image.
        reporter: told how long the timing takes.

    Raises:
        UsageError: the target is not ``cpu``.
    """
    if target != "cpu":
        raise UsageError(
            f"a budget of latency is measured on the processor, and --target is {target}",
            hint="Give --target cpu, or another budget.",
        )
    timer = PairedTimer(original, one_image(program, seed), processors())

    def timed(file: bytes) -> Timing:
        with reporter.stage("time"):
            return timer(file)

    return timed
