"""How sure an accuracy is: intervals for a share of right answers, and for the difference between two networks."""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # 95% of a normal distribution lies within this many deviations


def wilson(right: int, images: int) -> tuple[float, float]:
    """95% confidence interval of an accuracy (Wilson, 1927): stays within [0, 1], right also near its ends."""
    if images == 0:
        return 0.0, 1.0
    share, z2 = right / images, Z95**2
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = Z95 * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2)) / (1 + z2 / images)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired(lost: int, gained: int, images: int) -> tuple[float, float]:
    """95% interval of the drop in accuracy between two networks on the same images.

    Args:
        lost: images that only the first gets right.
        gained: images that only the second gets right.

    Only images on which they differ carry any doubt, so that this is far narrower than the two accuracies'
    own intervals (Wald's interval for paired shares with Agresti and Min's correction, 2005).
    """
    n, b, c = images + 2, lost + 0.5, gained + 0.5
    drop = (b - c) / n
    half = Z95 * math.sqrt(max(b + c - (b - c) ** 2 / n, 0.0)) / n
    return max(-1.0, drop - half), min(1.0, drop + half)
