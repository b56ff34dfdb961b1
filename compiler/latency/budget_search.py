"""A budget of time: the largest model whose exported file is measured to be fast enough.

No count of parameters, bytes or multiply-adds says how long a file takes, so it is measured: a policy is asked for
plans of ever other sizes, halving the range between what is too slow and what is fast enough, and each plan's file is
timed beside the original's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from svitc.errors import BudgetError
from svitc.latency.paired_timer import Timer, Timing
from svitc.planning.budget import Budget
from svitc.planning.plan import Plan
from svitc.support.distributed import current

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
        f"no plan that was tried meets {wanted.text}: the fastest takes {timing.compiled_ms:.3g} ms, "
        f"{timing.ratio:.3f} of the"
        f" original's {timing.original_ms:.3g} ms, with {fastest.share:.1%} of its parameters",
        hint=f"Ask for more, such as latency={least}, or free more groups.{why}",
    )
