"""Bisection between a number that is known to do and one that is known not to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def bisect(good: Number, bad: Number, does: Callable[[Number], bool], halvings: int | None = None) -> Number:
    """Return the last number, halving the way from ``good`` towards ``bad``, that does.

    For a condition that is costly to test and may hold here and there: the answer is ``good`` itself, or was tested.
    Where a condition changes once within a range of integers, ``bisect`` of the standard library finds the place.

    Args:
        good: counts as one that does, untested; may lie on either side of ``bad``.
        bad: counts as one that does not, untested.
        does: whether a number does.
        halvings: how many numbers to test; None, for integers only, to go on until the two are neighbors.
    """
    tested = 0
    while tested < halvings if halvings is not None else abs(bad - good) > 1:
        total = good + bad
        middle = total // 2 if isinstance(total, int) else total / 2
        if does(middle):
            good = middle
        else:
            bad = middle
        tested += 1
    return good


__all__ = ["bisect"]
