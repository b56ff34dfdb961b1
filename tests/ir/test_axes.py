"""Axis types: unification, row-major factoring, and conflicts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svitc.ir.axes import Axis, AxisConflict, Kind, factor, resolve, shape, unify


def channel(size: int, name: str = "c", frozen: str | None = None) -> Axis:
    return Axis(name, size, Kind.CHANNEL, "c", frozen)


def test_unified_axes_become_one():
    a, b = channel(8, "a"), channel(8, "b")
    assert unify((a,), (b,)) == (a,)
    assert resolve((a,)) == resolve((b,)) == (a,)


def test_an_axis_is_found_to_be_a_product():
    channels, h, d = channel(48), Axis("h", 4, Kind.CHANNEL, "h"), Axis("d", 12, Kind.CHANNEL, "d")
    assert unify((channels,), (h, d)) == (h, d)
    assert resolve((channels,)) == (h, d)


def test_frozen_passes_to_what_it_is_found_to_be():
    channels, h, d = channel(48, frozen="the model's output"), channel(4), channel(12)
    unify((channels,), (h, d))
    assert h.frozen == d.frozen == "the model's output"
    a, b = channel(8), channel(8, frozen="why")
    unify((a,), (b,))
    assert a.frozen == "why"


def test_factors_that_do_not_nest_are_refused():
    left = (channel(8), channel(48))
    right = (channel(3), channel(128))
    with pytest.raises(AxisConflict, match="factored differently"):
        unify(left, right)


def test_kinds_do_not_mix():
    with pytest.raises(AxisConflict, match="pixel"):
        unify((channel(8),), (Axis("x", 8, Kind.PIXEL, "x"),))


def test_sizes_must_agree():
    with pytest.raises(AxisConflict, match="sizes 8 and 9"):
        unify((channel(8),), (channel(9),))


def test_an_axis_of_size_one_is_no_obstacle():
    time, batch = Axis("t", 1, Kind.TIME, "t"), Axis("b", 3, Kind.BATCH, "b")
    assert factor(((time, batch),), (1, 3)) == ((time,), (batch,))
    assert unify((time, batch), (batch,)) == (time, batch)


def test_a_straddling_axis_is_split_and_remembered():
    channels = channel(144)
    assert shape(factor(((channels,),), (3, 4, 12))) == (3, 4, 12)
    assert [a.size for a in resolve((channels,))] == [3, 4, 12]


def test_what_does_not_factor_is_refused():
    with pytest.raises(AxisConflict):
        factor(((channel(8), channel(9)),), (6, 12))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.data())
def test_factoring_is_row_major(sizes, data):
    """Merging neighbors and splitting them again gives back the same axes in the same order."""
    dims = tuple((channel(n),) for n in sizes)
    cut = data.draw(st.integers(0, len(sizes)))
    merged = factor(dims, (math.prod(sizes[:cut]), math.prod(sizes[cut:])))
    again = factor(merged, sizes)
    assert shape(again) == tuple(sizes)
    flat = [a for dim in again for a in dim if a.size > 1]
    assert flat == [a for dim in dims for a in resolve(dim) if a.size > 1]
