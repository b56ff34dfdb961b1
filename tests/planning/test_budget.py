"""Budgets as users write them, and their cost to the byte."""

from __future__ import annotations

import pytest

from svitc.errors import UsageError
from svitc.ir.axes import Axis, Kind
from svitc.planning.budget import parse_budget
from svitc.planning.cost import Cost


@pytest.mark.parametrize(
    ("text", "of", "limit"),
    [
        ("0.78", "bytes", 780),
        ("78%", "bytes", 780),
        ("1", "bytes", 1000),
        ("100%", "bytes", 1000),
        ("12MB", "bytes", 12_000_000),
        ("12 MiB", "bytes", 12 * 2**20),
        ("500b", "bytes", 500),
        ("1.5kB", "bytes", 1500),
        ("params=8M", "parameters", 8_000_000),
        ("params=78%", "parameters", 780),
        ("params=0.5", "parameters", 500),
        ("params=1200", "parameters", 1200),
    ],
)
def test_budgets(text, of, limit):
    budget = parse_budget(text)
    assert (budget.of, budget.limit(1000)) == (of, limit)


@pytest.mark.parametrize(
    "text", ["0", "0%", "1.5", "150%", "abc", "", "-0.5", "12QB", "params=12MB", "nan", "1e", "12"]
)
def test_what_is_not_a_budget(text):
    with pytest.raises(UsageError) as caught:
        parse_budget(text)
    assert caught.value.hint


def test_cost_follows_sizes():
    a, b = Axis("a", 4, Kind.CHANNEL, "c"), Axis("b", 5, Kind.CHANNEL, "c")
    cost = Cost(constant=7)
    cost.add(4, ((a,), (b,)))
    cost.add(4, ((a,),))
    assert cost() == 7 + 4 * 20 + 4 * 4
    assert cost({id(a): 3}) == 7 + 4 * 15 + 4 * 3
