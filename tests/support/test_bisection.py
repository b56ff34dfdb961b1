"""Bisection: what is asked about, in which order, and what comes out."""

import pytest

from svitc.support.bisection import bisect


@pytest.mark.parametrize("good, bad, last", [(0, 9, 6), (9, 0, 7), (3, 4, 3)])
def test_integers_until_neighbors(good, bad, last):
    asked = []

    def does(number):
        asked.append(number)
        return number <= last if good < bad else number >= last

    assert bisect(good, bad, does) == last
    if good == 0:
        assert asked == [4, 6, 7]
    assert len(asked) == len(set(asked)) <= 4


def test_so_many_halvings():
    asked = []
    assert bisect(100, 0, lambda n: asked.append(n) or n >= 30, halvings=3) == 37
    assert asked == [50, 25, 37]
    assert bisect(0.0, 1.0, lambda x: x <= 0.3, halvings=40) == pytest.approx(0.3, abs=2**-40)
    assert bisect(0.0, 1.0, lambda x: True, halvings=0) == 0.0
