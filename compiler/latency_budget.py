"""A budget of time: the largest model whose exported file is measured to be fast enough.

No count of parameters, bytes or multiply-adds says how long a file takes, so it is measured: a policy is asked for
plans of ever other sizes, halving the range between what is too slow and what is fast enough, and each plan's file is
timed beside the original's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from svitc import onnx as backend
from svitc.errors import BudgetError, UsageError
from svitc.ir.program import Program
from svitc.latency import milliseconds, one_image
from svitc.planning.budget import Budget
from svitc.planning.plan import Plan
from svitc.support.distributed import current
from svitc.support.hardware import processors
from svitc.support.timing import Clock

CANDIDATES = 6
PAIRS = (10, 30)  # at least and at most
SECONDS = 2.0  # for the pairs of one candidate, but for the least
PAUSE = 0.02  # s; threads of one session spin for a while after its run, on the processors that the other one needs
UNTIMED_BELOW = 1.0  # s; a run before the timed one wakes up the session's own threads, where that is affordable


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
        untimed = slowest < 1e3 * UNTIMED_BELOW
        pair = 2 * (PAUSE + (1 + untimed) * slowest / 1e3)
        pairs = max(PAIRS[0], min(PAIRS[1], int(SECONDS / pair)))
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(pairs):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                time.sleep(PAUSE)
                if untimed:
                    self._once(both[which])
                times[which].append(self._once(both[which]))
        ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
        return Timing(statistics.median(times[0]), statistics.median(times[1]), ratio, pairs, self.threads)

    def _once(self, session: Any) -> float:
        return milliseconds(lambda: session.run(None, self.feed))


def paired_timer(original: bytes, program: Program, options: Any, clock: Clock) -> Timer:
    """What times files beside this one, for a compilation with these options: on one image, with all processors.

    Raises:
        UsageError: the files are for another target than this machine's processors.
    """
    if options.target != "cpu":
        raise UsageError(
            f"a budget of latency is measured on the processor, and --target is {options.target}",
            hint="Give --target cpu, or another budget.",
        )
    timer = PairedTimer(original, one_image(program, options.seed), processors())

    def timed(file: bytes) -> Timing:
        with clock.stage("time"):
            return timer(file)

    return timed


@dataclass(frozen=True)
class Candidate:
    """A plan that was timed.

    Attributes:
        limit: the most parameters that the policy was allowed.
        share: the same, of the original's.
    """

    plan: Plan
    limit: int
    share: float
    timing: Timing

    def to_json(self) -> dict[str, Any]:
        seen = {key: round(value, 4) for key, value in asdict(self.timing).items()}
        return {
            "limit": self.limit,
            "share": round(self.share, 6),
            **{k: seen[k] for k in ("original_ms", "compiled_ms", "ratio")},
        }


def within_latency(
    wanted: Budget,
    whole: int,
    make: Callable[[int], Plan],
    build: Callable[[Plan], bytes],
    timer: Callable[[], Timer],
    say: Callable[[str], None],
    candidates: int = CANDIDATES,
) -> tuple[Plan, dict[str, Any]]:
    """The largest of a few plans whose file is measured to be within a latency, and what the report says of it.

    Where there are several ranks the first one measures, and all take the same decisions.

    Args:
        wanted: a budget of latency.
        whole: parameters of the original.
        make: the policy's plan for at most so many parameters; BudgetError where there is none.
        build: the file of a plan.
        timer: gives what times a file beside the original's, on first use.
        candidates: how many plans may be timed.

    Raises:
        BudgetError: none of the plans is fast enough.
    """
    ranks = current()
    ready = timer() if ranks.is_writer else None

    def measure(plan: Plan) -> Timing:
        return ranks.on_writer(lambda: ready(build(plan)))  # type: ignore[misc]

    tried: list[Candidate] = []
    refused: BudgetError | None = None
    low, high = 0.0, 1.0
    # a share below 1 needs a cut; milliseconds may need none
    share = 1.0 if wanted.amount is not None or (wanted.share or 0) >= 1 else 0.5
    for _ in range(candidates):
        limit = int(whole * share)
        try:
            plan = make(limit)
        except BudgetError as problem:  # smaller than the policy can or may make it
            refused, low, share = problem, share, (share + high) / 2
            continue
        seen = Candidate(plan, limit, share, measure(plan))
        tried.append(seen)
        timing, met = seen.timing, fits(wanted, seen.timing)
        say(
            f"{share:.1%} of the parameters: {timing.compiled_ms:.2f} ms, {timing.ratio:.3f} of the original's"
            f" {timing.original_ms:.2f} ms, which {'meets' if met else 'is too slow for'} {wanted.text}"
        )
        if met and share == 1.0:
            break
        low, high = (share, high) if met else (low, share)
        share = (low + high) / 2
    best = max((each for each in tried if fits(wanted, each.timing)), key=lambda each: each.limit, default=None)
    if best is None:
        raise _unreachable(wanted, tried, refused)
    return best.plan, {
        "limit_ms": wanted.amount,
        "limit_share": wanted.share,
        "parameters": best.limit,
        **{key: round(value, 4) for key, value in asdict(best.timing).items()},
        "candidates": [each.to_json() for each in tried],
    }


def fits(wanted: Budget, timing: Timing) -> bool:
    """Whether a file is fast enough: by milliseconds, or by its share of the original's time in the same pairs."""
    if wanted.amount is not None:
        return timing.compiled_ms <= wanted.amount
    return timing.ratio <= float(wanted.share or 0)


def _unreachable(wanted: Budget, tried: list[Candidate], refused: BudgetError | None) -> BudgetError:
    fastest = min(tried, key=lambda each: each.timing.ratio, default=None)
    if fastest is None:
        assert refused is not None
        return BudgetError(f"no plan could be made for {wanted.text}: {refused.message}", hint=refused.hint)
    timing = fastest.timing
    why = "" if refused is None else f" Smaller ones cannot be made: {refused.message}."
    least = f"{np.ceil(100 * timing.ratio) / 100:g}" if wanted.amount is None else f"{1.1 * timing.compiled_ms:.2g}ms"
    return BudgetError(
        f"no plan that was tried meets {wanted.text}: the fastest takes {timing.compiled_ms:.3g} ms, {timing.ratio:.3f} of the"
        f" original's {timing.original_ms:.3g} ms, with {fastest.share:.1%} of its parameters",
        hint=f"Ask for more, such as latency={least}, or free more groups.{why}",
    )
