"""Confidence intervals of an accuracy, and of the difference between the accuracies of two networks."""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # 95% of a normal distribution lies within this many standard deviations


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
