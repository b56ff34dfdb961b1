"""Confidence in an accuracy, and in the difference between the accuracies of two networks on the same images.

``wilson`` and ``paired`` describe what was measured. ``drop_p_value`` and ``drop_bound`` are for promises: their error
is at most what they say, for every number of images.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from scipy import special

Z95 = 1.959963984540054  # 95% of a normal distribution lies within this many standard deviations
NUISANCE_ERROR = 0.001  # probability, spent by the p-value, that the true share of lost images is not in its interval
NUISANCE_CELLS = 200  # parts of that interval; more of them take longer and lower a p-value of 0.05 by less than 0.002
TAIL_DEVIATIONS = 9  # numbers of lost images this many standard deviations above the mean have no weight
TIE = 1e-9  # statistics that differ by less are equal
BISECTIONS = 24
POWER = 0.9  # probability with which as many images as ``images_needed`` says are enough


def wilson(right: int, images: int) -> tuple[float, float]:
    """Return the 95% confidence interval of an accuracy.

    The interval stays within [0, 1] and holds near both ends, where the normal approximation does not.
    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        right: number of correctly classified images.
        images: number of images; without any, the interval is [0, 1].

    Returns:
        The lower and the upper end, fractions of the images.
    """
    if images == 0:
        return 0.0, 1.0
    share, z2 = right / images, Z95**2
    center = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = Z95 * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2)) / (1 + z2 / images)
    return max(0.0, center - half), min(1.0, center + half)


def paired(lost: int, gained: int, images: int) -> tuple[float, float]:
    """Return the 95% confidence interval of the drop in accuracy between two networks on the same images.

    Only the images on which the networks differ are uncertain, so this interval is much narrower than the difference
    of the two accuracies' separate intervals. Source: Wald's interval for paired proportions, with the correction of
    A. Agresti and Y. Min, "Simple improved confidence intervals for comparing matched proportions", 2005.

    Args:
        lost: number of images that only the first network classifies correctly.
        gained: number of images that only the second network classifies correctly.
        images: number of images in all.

    Returns:
        The lower and the upper end of the drop, fractions of the images; negative where accuracy rises.
    """
    n, b, c = images + 2, lost + 0.5, gained + 0.5
    drop = (b - c) / n
    half = Z95 * math.sqrt(max(b + c - (b - c) ** 2 / n, 0.0)) / n
    return max(-1.0, drop - half), min(1.0, drop + half)


def drop_p_value(lost: int, gained: int, images: int, drop: float) -> float:
    """Return how surprising the counts of two networks on the same images are if the true drop is ``drop`` or more.

    Where the true drop is at least ``drop``, a p-value of at most alpha has at most the probability alpha, for every
    number of images. Counts are ordered by Tango's score statistic. How probable an image is to be lost is not known:
    that is restricted to a confidence interval (Berger and Boos), whose error is added, and the probability of counts
    as extreme as these is maximized over it.

    The maximum is bounded from above, not only looked up on a grid: to what is as extreme belongs all that has fewer
    lost or more gained images, so that its probability falls with that of a loss and rises with that of a gain. Between
    two neighbors on a grid, it is at most that for the smaller probability of a loss and the larger one of a gain.

    Sources: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17, 1998; R. L. Berger and D. D. Boos, "P values maximized over a confidence set for
    the nuisance parameter", JASA 89, 1994; H.-M. Hsueh, J.-P. Liu and J. J. Chen, "Unconditional exact tests for
    equivalence or noninferiority for paired binary endpoints", Biometrics 57, 2001.

    Args:
        lost: number of images that only the first network classifies correctly.
        gained: number of images that only the second network classifies correctly.
        images: number of images in all.
        drop: the drop of the null hypothesis, a share of the images, from 0 up to but not including 1.
    """
    if images == 0:
        return 1.0
    least_lost, most_lost = _clopper_pearson(lost, images, NUISANCE_ERROR)
    if most_lost <= drop:  # so few images are lost that the drop cannot be reached
        return NUISANCE_ERROR
    grid = np.linspace(max(least_lost, drop), most_lost, NUISANCE_CELLS + 1)
    counts, fewest_gained = _as_extreme(lost, gained, images, drop, most_lost)
    rest = images - counts
    ways = special.gammaln(images + 1) - special.gammaln(counts + 1) - special.gammaln(rest + 1)
    worst = 0.0
    for low, high in pairwise(grid.tolist()):
        if low == 1:  # every image is lost
            chance = (counts == images).astype(float)
            gain = 0.0
        else:
            chance = np.exp(ways + special.xlogy(counts, low) + special.xlog1py(rest, -low))
            gain = min(1.0, (high - drop) / (1 - low))
        worst = max(worst, float(chance @ _at_least(fewest_gained, rest, gain)))
    return min(1.0, worst + NUISANCE_ERROR)


def drop_bound(lost: int, gained: int, images: int, confidence: float = 0.95) -> float:
    """Return an upper confidence bound of the drop in accuracy between two networks on the same images.

    Args:
        lost, gained, images: as in ``drop_p_value``, which this inverts.
        confidence: probability with which the true drop is at most the bound, whatever it is.

    Returns:
        A share of the images; 1 where nothing can be said.
    """
    low, high = max(0.0, (lost - gained) / images if images else 1.0), 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if drop_p_value(lost, gained, images, middle) <= 1 - confidence:
            high = middle
        else:
            low = middle
    return high


def images_needed(lost: float, gained: float, drop: float, confidence: float = 0.95) -> int | None:
    """Return about how many images it takes to be confident that a drop is below ``drop``.

    By the normal approximation, for a test that succeeds with probability ``POWER``; never fewer than it takes where no
    image is lost, and ``drop_p_value`` spends its whole error on that.

    Args:
        lost, gained: shares of images that only the first, and only the second network classifies correctly.
        drop: the drop that is to be excluded, a share.
        confidence: how confident.

    Returns:
        The number; None where no number is enough, as the drop is ``drop`` or more.
    """
    if lost - gained >= drop:
        return None
    alpha = 1 - confidence
    none_lost = math.log(max(alpha - NUISANCE_ERROR, NUISANCE_ERROR)) / math.log1p(-drop)
    deviations = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(POWER)
    variance = lost + gained - (lost - gained) ** 2
    return math.ceil(max(none_lost, variance * (deviations / (drop - (lost - gained))) ** 2))


def _clopper_pearson(count: int, images: int, error: float) -> tuple[float, float]:
    """Return the exact two-sided confidence interval of a share (C. J. Clopper and E. S. Pearson, 1934)."""
    low = float(special.betaincinv(count, images - count + 1, error / 2)) if count else 0.0
    high = float(special.betaincinv(count + 1, images - count, 1 - error / 2)) if count < images else 1.0
    return low, high


def _as_extreme(lost: int, gained: int, images: int, drop: float, most_lost: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts that speak as clearly against a drop as the observed ones do, or more clearly.

    Args:
        lost, gained, images, drop: as in ``drop_p_value``.
        most_lost: the largest probability of a loss that is looked at.

    Returns:
        Numbers of lost images from 0 up, beyond which no probability lies; and for each the fewest gained images that
        are enough, more than there are where no number is.
    """
    reach = images * most_lost + TAIL_DEVIATIONS * math.sqrt(images * most_lost) + TAIL_DEVIATIONS**2
    counts = np.arange(min(images, max(math.ceil(reach), lost)) + 1)
    rest = images - counts
    observed = _score(np.array([lost]), np.array([gained]), images, drop)[0]
    low, high = np.full(len(counts), -1), rest + 1  # low: too few gained; high: enough, or more than there are
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = _score(counts, np.maximum(middle, 0), images, drop) <= observed + TIE
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    fewest = np.where(high > rest, images + 1, high)
    return counts, np.minimum.accumulate(fewest[::-1])[::-1]  # what is enough for more losses is enough for fewer


def _score(lost: np.ndarray, gained: np.ndarray, images: int, drop: float) -> np.ndarray:
    """Return Tango's statistic: how many standard deviations the drop lies above ``drop``, if that is the true one."""
    total = lost + gained + (lost - gained - 2 * images) * drop
    gain = (total + np.sqrt(total**2 + 8 * images * gained * drop * (1 - drop))) / (4 * images)  # likeliest, given drop
    variance = images * np.maximum(2 * np.maximum(gain, 0) + drop - drop**2, 0)
    beyond = lost - gained - images * drop
    certain = np.where(beyond == 0, 0.0, np.copysign(np.inf, beyond))
    return np.divide(beyond, np.sqrt(variance), out=certain, where=variance > 0)


def _at_least(fewest: np.ndarray, trials: np.ndarray, chance: float) -> np.ndarray:
    """Return the probability of at least ``fewest`` successes in ``trials``, each of which succeeds by ``chance``."""
    possible = (fewest >= 1) & (fewest <= trials)
    tail = special.betainc(np.where(possible, fewest, 1), np.where(possible, trials - fewest + 1, 1), chance)
    return np.where(possible, tail, (fewest < 1).astype(float))
