"""A budget of time: the largest model whose exported file is measured to be fast enough.

No count of parameters, bytes or multiply-adds says how long a file takes, so it is measured: a policy is asked for
plans of ever other sizes, halving the range between what is too slow and what is fast enough, and each plan's file is
timed beside the original's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from svitc.errors import BudgetError
from svitc.latency.paired_timer import Timer, Timing
from svitc.planning.budget import Budget
from svitc.planning.plan import Plan
from svitc.support.distributed import current
from svitc.support.reporter import Reporter

CANDIDATES = 6


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
    budget: Budget,
    parameters: int,
    make: Callable[[int], Plan],
    build: Callable[[Plan], bytes],
    timer: Callable[[], Timer],
    reporter: Reporter,
    candidates: int = CANDIDATES,
) -> tuple[Plan, dict[str, Any]]:
    """Return the largest of a few plans whose file is measured to be within a latency, and the report's part on that.

    Where there are several ranks the first one measures, and all take the same decisions.

    Args:
        budget: one of latency.
        parameters: of the original.
        make: the policy's plan for at most so many parameters; BudgetError where there is none.
        build: the file of a plan.
        timer: gives what times a file beside the original's, on first use.
        reporter: told of each candidate.
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
    share = 1.0 if budget.amount is not None or (budget.share or 0) >= 1 else 0.5
    for _ in range(candidates):
        limit = int(parameters * share)
        try:
            plan = make(limit)
        except BudgetError as problem:  # smaller than the policy can or may make it
            refused, low, share = problem, share, (share + high) / 2
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
        raise _unreachable(budget, tried, refused)
    return best.plan, _timing_report(budget, best, tried)


def _sentence(budget: Budget, candidate: Candidate, met: bool) -> str:
    timing = candidate.timing
    return (
        f"{candidate.share:.1%} of the parameters: {timing.compiled_ms:.2f} ms, {timing.ratio:.3f} of the original's"
        f" {timing.original_ms:.2f} ms, which {'meets' if met else 'is too slow for'} {budget.text}"
    )


def _timing_report(budget: Budget, best: Candidate, tried: Sequence[Candidate]) -> dict[str, Any]:
    """Return what the report's ``budget`` says of the search."""
    return {
        "limit_ms": budget.amount,
        "limit_share": budget.share,
        "parameters": best.limit,
        **{key: round(value, 4) for key, value in asdict(best.timing).items()},
        "candidates": [candidate.to_json() for candidate in tried],
    }


def fits(budget: Budget, timing: Timing) -> bool:
    """Return whether a file is fast enough: by milliseconds, or by its share of the original's time in the same pairs."""
    if budget.amount is not None:
        return timing.compiled_ms <= budget.amount
    return timing.ratio <= float(budget.share or 0)


def _unreachable(budget: Budget, tried: list[Candidate], refused: BudgetError | None) -> BudgetError:
    fastest = min(tried, key=lambda candidate: candidate.timing.ratio, default=None)
    if fastest is None:
        assert refused is not None
        return BudgetError(f"no plan could be made for {budget.text}: {refused.message}", hint=refused.hint)
    timing = fastest.timing
    why = "" if refused is None else f" Smaller ones cannot be made: {refused.message}."
    least = f"{np.ceil(100 * timing.ratio) / 100:g}" if budget.amount is None else f"{1.1 * timing.compiled_ms:.2g}ms"
    return BudgetError(
        f"no plan that was tried meets {budget.text}: the fastest takes {timing.compiled_ms:.3g} ms, {timing.ratio:.3f} of the"
        f" original's {timing.original_ms:.3g} ms, with {fastest.share:.1%} of its parameters",
        hint=f"Ask for more, such as latency={least}, or free more groups.{why}",
    )
