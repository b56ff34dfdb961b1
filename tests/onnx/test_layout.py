"""Layouts: what lies as one dimension, and the fewest view operations between two layouts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svitc.errors import InternalError
from svitc.ir.axes import Axis, Kind, shape, size
from svitc.onnx import layout

T, B = Axis("t", 4, Kind.TIME, "t"), Axis("b", 3, Kind.BATCH, "b")
H, D = Axis("h", 2, Kind.CHANNEL, "h"), Axis("d", 5, Kind.CHANNEL, "d")
Y, X = Axis("y", 6, Kind.PIXEL, "y"), Axis("x", 7, Kind.PIXEL, "x")


def operators(source, target) -> list[str]:
    return [step.op for step in layout.view_operations(source, target)]


def test_time_and_batch_lie_as_one_dimension():
    assert layout.physical(((T,), (B,), (H, D), (Y, X))) == ((T, B), (H, D), (Y, X))
    assert layout.physical(((), (B,), (D,))) == ((B,), (D,))  # one time step


@pytest.mark.parametrize(
    "view",
    [
        ((B,), (D,), (Y,), (X,)),
        ((B,), (), (Y,), (X,)),  # an image of one channel
        ((B,), (T,), (D,)),
        ((T,), (B, Y), (D,)),
        ((T,), (B,)),
    ],
    ids=str,
)
def test_any_other_form_is_used_as_it_is(view):
    assert layout.physical(view) == view


def test_tokens_are_private_and_axes_of_size_one_have_none():
    dims = ((T,), (B,), (D,), (D,), (Axis("one", 1, Kind.CHANNEL, "c"),))
    view = layout.fresh(dims)
    assert view[2] != view[3] and view[4] == () and shape(view) == shape(dims)


def test_a_square_is_transposed_by_place_although_its_axes_are_the_same():
    view = layout.fresh(((T,), (B,), (D,), (D,)))
    after = layout.rearranged(view, "t b h d -> t b d h", {}, ((T,), (B,), (D,), (D,)))
    assert after == (view[0], view[1], view[3], view[2])
    assert operators(layout.physical(view), layout.physical(after)) == ["Transpose"]


def test_a_repeated_axis_that_a_later_view_splits_has_a_token_for_each_part():
    two, three = Axis("t/0", 2, Kind.TIME, "t"), Axis("t/1", 3, Kind.TIME, "u")
    view = layout.fresh(((B,), (D,)))
    after = layout.rearranged(view, "b d -> (t b) d", {"t": 6}, ((two, three, B), (D,)))
    assert [token.size for token in after[0]] == [2, 3, B.size] and after[0][2] is view[0][0] and after[1] == view[1]


@pytest.mark.parametrize(
    "source, target, expected",
    [
        (((T, B), (H, D)), ((T, B), (H, D)), []),
        (((T, B), (D,), (Y,), (X,)), ((T, B), (D,), (Y, X)), ["Reshape"]),
        (((T, B), (D,), (Y,)), ((T, B), (Y,), (D,)), ["Transpose"]),
        (((T, B), (D,), (), (Y,)), ((T, B), (Y,), (), (D,)), ["Transpose"]),
        (((T, B), (H, D), (Y,), (X,)), ((T, B), (H,), (Y, X), (D,)), ["Reshape", "Transpose"]),
        (((T, B), (H,), (Y, X), (D,)), ((T, B), (H, D), (Y,), (X,)), ["Transpose", "Reshape"]),
        (((T, B), (H, D), (Y,)), ((T, B), (D, Y), (H,)), ["Reshape", "Transpose"]),
        (((T, B), (H, D)), ((T, B), (D, H)), ["Reshape", "Transpose", "Reshape"]),
    ],
    ids=str,
)
def test_the_fewest_operations(source, target, expected):
    assert operators(source, target) == expected


def test_reshapes_keep_the_batch_dynamic_and_share_targets():
    (step,) = layout.view_operations(((T, B), (H, D), (Y,), (X,)), ((T, B), (H, D), (Y, X)))
    assert step.operand == (0, 0, -1)
    (step,) = layout.view_operations(((T, B), (H, D)), ((T,), (B,), (H, D)))
    assert step.operand == (4, -1, 10)
    (step,) = layout.view_operations(((T,), (B,), (D,)), ((T, B), (D,)))
    assert step.operand == (-1, 5)
    (step,) = layout.view_operations(((T, B), (Y,)), ((T, B), (), (Y,)))
    assert step.operand == (0, 1, -1)


def test_shapes_name_the_batch():
    assert layout.shape(((T,), (B,), (H, D), ())) == (4, "N", 10, 1)
    assert layout.shape(((T, B), (D,))) == ("4*N", 5)


def test_a_layout_of_other_axes_is_refused():
    with pytest.raises(InternalError, match="does not have the axes"):
        layout.view_operations(((T, B), (D,)), ((T, B), (Y,)))


@st.composite
def layouts(draw):
    """Two layouts of the same tokens, dimensions of size 1 among them."""
    tokens = draw(st.permutations([T, B, H, D, Y]))

    def grouped(order):
        cuts = draw(st.lists(st.integers(0, len(order)), max_size=6))
        edges = [0, *sorted(cuts), len(order)]
        return tuple(tuple(order[a:b]) for a, b in pairwise(edges))

    return grouped(tokens), grouped(draw(st.permutations(tokens)))


@given(layouts())
def test_the_operations_do_what_they_should(pair):
    source, target = pair
    order = layout.flat(source)
    values = np.arange(size(order))
    array = values.reshape(shape(source))
    found = layout.view_operations(source, target)
    for step in found:
        if step.op == "Transpose":
            array = array.transpose(step.operand)
        else:  # as ONNX does it, where 0 copies the input's dimension
            array = array.reshape([array.shape[i] if n == 0 else n for i, n in enumerate(step.operand)])
        assert array.shape == shape(step.dims)
    places = [order.index(token) for token in layout.flat(target)]
    want = values.reshape([token.size for token in order]).transpose(places).reshape(shape(target))
    np.testing.assert_array_equal(array, want)
    if places == sorted(places):
        assert [step.op for step in found] == ([] if source == target else ["Reshape"])
    else:
        assert [step.op for step in found].count("Transpose") == 1 and len(found) <= 3
