"""Two files timed in alternation, so that what disturbs the machine disturbs both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from svitc import onnx as backend
from svitc.errors import UsageError
from svitc.ir.program import Program
from svitc.latency.predict import milliseconds, one_image
from svitc.support.hardware import processors
from svitc.support.reporter import Reporter

PAIRS = (10, 30)  # at least and at most
CANDIDATE_S = 2.0  # for the pairs of one candidate, but for the least
PAUSE_S = 0.02  # threads of one session spin for a while after its run, on the processors that the other one needs
UNTIMED_BELOW_S = 1.0  # a run before the timed one wakes up the session's own threads, where that is affordable


@dataclass(frozen=True)
class Timing:
    """Two files, run in alternation.

    Attributes:
        original_ms, compiled_ms: median of one run, for one image.
        ratio: median over pairs of the second's time over the first's, in the same pair.
        pairs: how many.
        threads: of ONNX Runtime.
    """

    original_ms: float
    compiled_ms: float
    ratio: float
    pairs: int
    threads: int


Timer = Callable[[bytes], Timing]


class PairedTimer:
    """Times files beside one original, so that what disturbs the machine disturbs both.

    Args:
        original: the file that others are compared with.
        x: the input of every run.
        threads: of each session.
    """

    def __init__(self, original: bytes, x: np.ndarray, threads: int) -> None:
        self.threads, self.feed = threads, {backend.INPUT: x}
        self.original = backend.session(original, threads)

    def __call__(self, file: bytes) -> Timing:
        both = (self.original, backend.session(file, self.threads))
        slowest = max(self._once(session) for session in both)
        untimed = slowest < 1e3 * UNTIMED_BELOW_S
        pair = 2 * (PAUSE_S + (1 + untimed) * slowest / 1e3)
        pairs = max(PAIRS[0], min(PAIRS[1], int(CANDIDATE_S / pair)))
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(pairs):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                time.sleep(PAUSE_S)
                if untimed:
                    self._once(both[which])
                times[which].append(self._once(both[which]))
        ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
        return Timing(statistics.median(times[0]), statistics.median(times[1]), ratio, pairs, self.threads)

    def _once(self, session: Any) -> float:
        return milliseconds(lambda: session.run(None, self.feed))


def paired_timer(original: bytes, program: Program, target: str, seed: int, reporter: Reporter) -> Timer:
    """Return what times files beside this one: on one image, with all processors.

    Args:
        original: the file that others are timed beside.
        program: which it is of.
        target: what files are made for.
        seed: of the image.
        reporter: told how long the timing takes.

    Raises:
        UsageError: the files are for another target than this machine's processors.
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
