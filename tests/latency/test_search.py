"""The search for a plan within a latency budget, with a timer that answers from a formula."""

from __future__ import annotations

import json

import numpy as np
import pytest

from support.paths import DIGITS
from support.shell import run
from svitc.errors import BudgetError, UsageError
from svitc.latency.budget_search import within_latency
from svitc.latency.paired_timer import Timing
from svitc.planning.budget import parse_budget
from svitc.planning.plan import Plan
from svitc.support.reporter import Reporter

WHOLE = 100_000


@pytest.mark.parametrize(
    ("text", "share", "amount"),
    [
        ("latency=0.6", 0.6, None),
        ("latency=60%", 0.6, None),
        ("latency=1", 1.0, None),
        ("LATENCY=100%", 1.0, None),
        ("latency=50ms", None, 50.0),
        ("latency=1.5 ms", None, 1.5),
        ("latency=250us", None, 0.25),
        ("latency=2s", None, 2000.0),
    ],
)
def test_budgets_of_latency(text, share, amount):
    budget = parse_budget(text)
    assert (budget.of, budget.share, budget.amount, budget.text) == ("latency", share, pytest.approx(amount), text)


BAD_BUDGETS = [
    "latency=0",
    "latency=1.5",
    "latency=abc",
    "latency=50",
    "latency=150%",
    "latency=0ms",
    "latency=-5ms",
    "latency=",
    "latency=5MB",
    "latency=5mb",
    "latency=nan",
    "latency=1e999ms",
    "5ms",
    "1e999MB",
]


@pytest.mark.parametrize("text", BAD_BUDGETS)
def test_what_is_not_a_budget_of_latency(text, capsys, tmp_path):
    with pytest.raises(UsageError) as caught:
        parse_budget(text)
    assert "latency=" in str(caught.value.hint)
    status, out, err = run(capsys, "compile", DIGITS, "--no-data", "uniform", "--budget", text, "-o", tmp_path / "out")
    assert (status, out) == (2, "") and repr(text) in err and not (tmp_path / "out").exists()


def search(text, ratio, make=None, original=20.0, **more):
    """The search over plans that are their limit, with a timer that knows how long each takes."""
    asked: list[int] = []

    def plan(limit: int) -> Plan:
        asked.append(limit)
        return Plan({}, {"limit": limit})

    def timer(file: bytes) -> Timing:
        r = ratio(int(file) / WHOLE)
        return Timing(original, original * r, r, 10, 2)

    said: list[str] = []
    found = within_latency(
        parse_budget(text),
        WHOLE,
        make or plan,
        lambda plan: str(plan.provenance["limit"]).encode(),
        lambda: timer,
        Reporter(on_decision=said.append),
        **more,
    )
    return found, asked, said


def test_the_largest_that_is_fast_enough():
    (plan, report), asked, said = search("latency=0.6", lambda share: share)
    assert asked == [50000, 75000, 62500, 56250, 59375, 60937], "halving, six times"
    assert plan.provenance["limit"] == 59375 == report["parameters"]
    assert (report["ratio"], report["original_ms"], report["compiled_ms"]) == (0.5938, 20.0, 11.875)
    assert (report["pairs"], report["threads"], report["limit_share"], report["limit_ms"]) == (10, 2, 0.6, None)
    assert [each["limit"] for each in report["candidates"]] == asked and json.dumps(report)
    assert len(said) == 6 and "meets latency=0.6" in said[0] and "too slow for latency=0.6" in said[1]


def test_milliseconds():
    (plan, _), asked, _ = search("latency=10ms", lambda share: share)
    assert asked[0] == WHOLE, "which may be fast enough as it is"
    assert 46_000 < plan.provenance["limit"] <= 50_000
    (plan, report), asked, _ = search("latency=25ms", lambda share: share)
    assert asked == [WHOLE] == [plan.provenance["limit"]] and report["limit_ms"] == 25.0
    (plan, _), asked, _ = search("latency=1", lambda share: share)
    assert asked == [WHOLE], "nothing has to go"


def test_a_cost_that_no_cut_removes():
    (plan, report), _, _ = search("latency=0.6", lambda share: 0.5 + share / 2)
    assert plan.provenance["limit"] == 18750 and report["ratio"] <= 0.6


@pytest.mark.parametrize("seed", range(5))
def test_a_timer_with_noise(seed):
    random = np.random.default_rng(seed)
    (plan, report), asked, _ = search("latency=0.6", lambda share: share * random.normal(1, 0.05))
    assert report["ratio"] <= 0.6, "what was chosen was measured to be fast enough, whatever the others were"
    met = [each["limit"] for each in report["candidates"] if each["ratio"] <= 0.6]
    assert plan.provenance["limit"] == max(met) and len(asked) == 6
    assert 0.45 * WHOLE < plan.provenance["limit"] < 0.75 * WHOLE


def test_none_is_fast_enough():
    with pytest.raises(BudgetError) as caught:
        search("latency=0.3", lambda share: 0.5 + share / 2)
    assert "0.508 of the original's 20 ms, with 1.6% of its parameters" in str(caught.value)
    assert "latency=0.51" in str(caught.value.hint) and caught.value.exit_status == 5
    with pytest.raises(BudgetError, match="latency=6ms") as caught:
        search("latency=6ms", lambda share: 0.5 + share / 2)
    assert "such as latency=11ms" in str(caught.value.hint)


def test_a_policy_that_cannot_cut_as_far():
    def make(limit: int) -> Plan:
        if limit < 60_000:
            raise BudgetError(f"the budget of {limit} parameters cannot be met", hint="Ask for more.")
        return Plan({}, {"limit": limit})

    (plan, _), _, said = search("latency=0.8", lambda share: share, make)
    assert 75_000 <= plan.provenance["limit"] <= 80_000 and len(said) == 5, "the first was refused, and is not timed"
    with pytest.raises(BudgetError, match="no plan that was tried meets") as caught:
        search("latency=0.5", lambda share: share, make)
    assert "Smaller ones cannot be made" in str(caught.value.hint)
    with pytest.raises(BudgetError, match="no plan could be made for latency=0.5: the budget of") as caught:
        search("latency=0.5", lambda share: share, make, candidates=1)
    assert caught.value.hint == "Ask for more."
