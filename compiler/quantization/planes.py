"""Planes: integer weights of up to 16 bits as a high and a low plane of bytes, ``base * high + low``.

Each plane is multiplied by the inputs in an integer product of its own. The low digits are signed, so that both planes
are small: next to inputs of more than 7 bits, which processors without VNNI could add beyond int16
(``quantization/pair_bound.py``), digits of 7 bits and a base of 128 keep every pair within it.
"""

from __future__ import annotations

import numpy as np

from svitc.quantization.pair_bound import pair_limit

WIDE_BASE, NARROW_BASE = 256, 128
# largest weights: the largest high digit times the base, and the largest low digit
WIDE_LEVELS = 127 * WIDE_BASE + 127
NARROW_LEVELS = 63 * NARROW_BASE + 63


def levels(largest_input: int) -> int:
    """Return the largest weight whose planes saturate nowhere, for unsigned inputs up to a byte."""
    return WIDE_LEVELS if pair_limit(largest_input) >= WIDE_BASE else NARROW_LEVELS


def split(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the high and the low plane of integer weights, int8, and the base."""
    wide = weight.astype(np.int32)
    base = NARROW_BASE if np.abs(wide).max(initial=0) <= NARROW_LEVELS else WIDE_BASE
    high = (wide + base // 2) // base
    return high.astype(np.int8), (wide - base * high).astype(np.int8), base


__all__ = ["levels", "split"]
