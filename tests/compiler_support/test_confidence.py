"""Intervals: published values, and what must hold of any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from svitc.support.confidence import drop_bound, drop_p_value, images_needed, paired, wilson


# Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (score without continuity correction)
@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(right, images, low, high):
    assert wilson(right, images) == pytest.approx((low, high), abs=5e-5)


counts = st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_wilson_holds_the_share_and_stays_within_0_and_1(case):
    right, images = case
    low, high = wilson(right, images)
    assert 0 <= low <= right / images + 1e-12 and right / images - 1e-12 <= high <= 1
    mirrored = wilson(images - right, images)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)
    wider, narrower = wilson(right, images), wilson(4 * right, 4 * images)
    assert narrower[1] - narrower[0] < wider[1] - wider[0]


def test_nothing_seen_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = paired(0, 0, 0)
    assert low < -0.9 and high > 0.9


@pytest.mark.parametrize(
    # Agresti and Min, Statistics in Medicine 24 (2005): Wald's interval with 0.5 added to each of the four cells;
    # the approval ratings of Agresti's Categorical Data Analysis: 150 and 86 of 1600 changed their mind
    ("lost", "gained", "images", "low", "high"),
    [(150, 86, 1600, 0.02111, 0.05878), (0, 0, 98, -0.0196, 0.0196)],
)
def test_paired_as_published(lost, gained, images, low, high):
    assert paired(lost, gained, images) == pytest.approx((low, high), abs=2e-4)


changes = st.integers(1, 5_000).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.just(n)).flatmap(
        lambda c: st.tuples(st.just(c[0]), st.integers(0, c[1] - c[0]), st.just(c[1]))
    )
)


@given(changes)
def test_paired_is_antisymmetric_and_stays_within_minus_1_and_1(case):
    lost, gained, images = case
    low, high = paired(lost, gained, images)
    assert -1 <= low <= high <= 1
    assert paired(gained, lost, images) == pytest.approx((-high, -low), abs=1e-12)
    assert low - 2 / images <= (lost - gained) / images <= high + 2 / images


@given(st.integers(100, 5_000), st.integers(0, 50))
def test_images_that_do_not_change_carry_no_doubt(images, changed):
    """Far narrower than the two accuracies' own intervals."""
    low, high = paired(changed, 0, images)
    more = paired(changed, changed, images)
    assert high - low <= more[1] - more[0] + 1e-12
    alone = wilson(images // 2, images)
    if changed < images / 20:
        assert high - low < alone[1] - alone[0]


def _chance(lost_counts, gained_counts, images, lost, gained):
    """Return the probability of each number of lost and gained images."""
    rest = images - lost_counts - gained_counts
    ways = special.gammaln(images + 1) - sum(special.gammaln(k + 1) for k in (lost_counts, gained_counts, rest))
    logs = special.xlogy(lost_counts, lost) + special.xlogy(gained_counts, gained)
    return np.exp(ways + logs + special.xlogy(rest, max(0.0, 1 - lost - gained)))


@pytest.mark.parametrize(("images", "drop"), [(12, 0.3), (28, 0.05)])
def test_a_drop_is_excluded_wrongly_no_more_often_than_promised(images, drop):
    """Every pair of counts, and all probabilities of them at the edge of the null hypothesis: nothing is simulated."""
    pairs = np.array([(b, c) for b in range(images + 1) for c in range(images + 1 - b)])
    values = np.array([drop_p_value(int(b), int(c), images, drop) for b, c in pairs])
    shares = []
    for lost in np.linspace(drop, (1 + drop) / 2, 40):
        chances = _chance(*pairs.T, images, lost, lost - drop)
        assert chances.sum() == pytest.approx(1)
        shares += [(chances[values <= alpha].sum(), alpha) for alpha in (0.01, 0.05, 0.2)]
    assert all(share <= alpha for share, alpha in shares)
    assert max(share for share, alpha in shares if alpha == 0.2) > 0.1  # and it does exclude some


def test_more_losses_and_fewer_images_are_less_convincing():
    base = drop_p_value(20, 15, 5000, 0.005)
    assert base < 0.01 < drop_p_value(30, 15, 5000, 0.005)
    assert base < drop_p_value(4, 3, 1000, 0.005)
    assert drop_p_value(0, 0, 0, 0.1) == 1.0
    assert drop_p_value(5, 0, 5, 0.1) == 1.0


def test_the_bound_of_a_drop_inverts_the_test():
    bound = drop_bound(20, 15, 5000)
    assert 0.001 < bound < 0.005
    assert drop_p_value(20, 15, 5000, bound) == pytest.approx(0.05, abs=1e-3)
    assert bound < drop_bound(20, 15, 5000, confidence=0.99)
    assert drop_bound(0, 0, 0) == 1.0


def test_images_that_are_needed_are_enough():
    images = images_needed(0.006, 0.004, 0.005)
    assert images is not None
    assert drop_p_value(round(0.006 * images), round(0.004 * images), images, 0.005) < 0.05
    assert drop_p_value(round(0.006 * images / 4), round(0.004 * images / 4), images // 4, 0.005) > 0.05
    none_lost = images_needed(0, 0, 0.005)
    assert drop_p_value(0, 0, none_lost, 0.005) <= 0.05 < drop_p_value(0, 0, none_lost - 20, 0.005)
    assert images_needed(0.01, 0.005, 0.005) is None
