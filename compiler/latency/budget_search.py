"""A latency budget: find the largest model whose exported file is measured to be fast enough.

Latency does not follow from the number of parameters, bytes or multiply-accumulates, so it is measured: a bisection
over the number of parameters asks a policy for plans, and times the file of each plan beside the original's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from svitc.errors import BudgetError
from svitc.latency.paired_timer import Timer, Timing
from svitc.planning.budget import Budget
from svitc.planning.plan import Plan
from svitc.support.distributed import current
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

MAX_CANDIDATES = 6


@dataclass(frozen=True)
class Candidate:
    """A plan that was timed.

    Attributes:
        plan: the plan.
        limit: the largest number of parameters that the policy was allowed.
        share: the same as a share of the original's.
        timing: measured times of the plan's file and of the original's.
    """

    plan: Plan
    limit: int
    share: float
    timing: Timing

    def to_json(self) -> JsonDict:
        """Return the candidate's row in the report, as JSON values."""
        times = {key: round(value, 4) for key, value in asdict(self.timing).items()}
        return {
            "limit": self.limit,
            "share": round(self.share, 6),
            **{key: times[key] for key in ("original_ms", "compiled_ms", "ratio")},
        }


def within_latency(
    budget: Budget,
    parameters: int,
    make: Callable[[int], Plan],
    build: Callable[[Plan], bytes],
    timer: Callable[[], Timer],
    reporter: Reporter,
    candidates: int = MAX_CANDIDATES,
) -> tuple[Plan, JsonDict]:
    """Return the largest of the timed plans whose file meets a latency budget, and the report's entries on the search.

    Where there are several ranks, the first one measures, and all take the same decisions.

    Args:
        budget: a latency budget.
        parameters: number of parameters of the original.
        make: returns the policy's plan for at most this many parameters; raises BudgetError where there is none.
        build: returns the exported file of a plan.
        timer: returns the timer, which times a file beside the original's; called on the first rank only.
        reporter: told about each candidate.
        candidates: largest number of plans that are timed.

    Raises:
        BudgetError: none of the plans is fast enough.
    """
    ranks = current()
    time_file = timer() if ranks.is_writer else None

    def measure(plan: Plan) -> Timing:
        return ranks.on_writer(lambda: time_file(build(plan)))  # type: ignore[misc]

    tried: list[Candidate] = []
    rejection: BudgetError | None = None
    low, high = 0.0, 1.0
    # a share below 1 requires pruning; a number of milliseconds may not
    share = 1.0 if budget.amount is not None or (budget.share or 0) >= 1 else 0.5
    for _ in range(candidates):
        limit = int(parameters * share)
        try:
            plan = make(limit)
        except BudgetError as problem:  # the policy cannot make a model that is as small as this
            rejection, low, share = problem, share, (share + high) / 2
            continue
        candidate = Candidate(plan, limit, share, measure(plan))
        tried.append(candidate)
        met = fits(budget, candidate.timing)
        reporter.decide(_sentence(budget, candidate, met))
        if met and share == 1.0:
            break
        low, high = (share, high) if met else (low, share)
        share = (low + high) / 2
    best = max((c for c in tried if fits(budget, c.timing)), key=lambda c: c.limit, default=None)
    if best is None:
        raise _unreachable(budget, tried, rejection)
    return best.plan, _timing_report(budget, best, tried)


def _sentence(budget: Budget, candidate: Candidate, met: bool) -> str:
    timing = candidate.timing
    return (
        f"{candidate.share:.1%} of the parameters: {timing.compiled_ms:.2f} ms, {timing.ratio:.3f} of the original's"
        f" {timing.original_ms:.2f} ms, which {'meets' if met else 'is too slow for'} {budget.text}"
    )


def _timing_report(budget: Budget, best: Candidate, tried: Sequence[Candidate]) -> JsonDict:
    """Return the entries on the search in the report's ``budget``."""
    return {
        "limit_ms": budget.amount,
        "limit_share": budget.share,
        "parameters": best.limit,
        **{key: round(value, 4) for key, value in asdict(best.timing).items()},
        "candidates": [candidate.to_json() for candidate in tried],
    }


def fits(budget: Budget, timing: Timing) -> bool:
    """Return whether a file is fast enough, in milliseconds or as a share of the original's time."""
    if budget.amount is not None:
        return timing.compiled_ms <= budget.amount
    return timing.ratio <= float(budget.share or 0)


def _unreachable(budget: Budget, tried: list[Candidate], rejection: BudgetError | None) -> BudgetError:
    """Return the error for a budget that no candidate meets.

    Args:
        budget: the latency budget.
        tried: the candidates that were timed.
        rejection: the policy's last error, where it could not make a smaller model.
    """
    fastest = min(tried, key=lambda candidate: candidate.timing.ratio, default=None)
    if fastest is None:
        assert rejection is not None
        return BudgetError(f"no plan could be made for {budget.text}: {rejection.message}", hint=rejection.hint)
    timing = fastest.timing
    reason = "" if rejection is None else f" Smaller ones cannot be made: {rejection.message}."
    reachable = (
        f"{np.ceil(100 * timing.ratio) / 100:g}" if budget.amount is None else f"{1.1 * timing.compiled_ms:.2g}ms"
    )
    return BudgetError(
        f"no plan that was tried meets {budget.text}: the fastest takes {timing.compiled_ms:.3g} ms, {timing.ratio:.3f}"
        f" of the original's {timing.original_ms:.3g} ms, with {fastest.share:.1%} of its parameters",
        hint=f"Ask for more, such as latency={reachable}, or free more groups.{reason}",
    )
