"""The weight grid: the integers that 8, 4 and 2 bits hold, and the scale of each output channel.

The weights of a channel are integers times a scale. Eight bits hold -127 to 127 and four bits -7 to 7. Two bits hold
the odd numbers -3, -1, 1 and 3: on normally distributed weights these leave two thirds of the error that -1, 0 and 1
would (J. Max, "Quantizing for minimum distortion", 1960). Ternary weights are these three, for hardware that adds and
subtracts and skips the rest; they take two bits as well.
"""

from __future__ import annotations

import torch

from svitc.ir.quantized_modules import LEVELS, TERNARY, WIDE_BITS

# smallest clipping range that is tried, as a fraction of the channel's largest weight
SMALLEST_RANGE = {4: 0.2, 2: 0.2, TERNARY: 0.04}
RANGE_STEP = 0.02  # distance of two clipping ranges that are tried, as such a fraction
ZERO_CHANNEL_SCALE = 2.0**-100  # with two bits, scale of a channel whose weights are all 0: two bits hold no zero


def nearest(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Round each element to the nearest integer that a weight of ``bits`` bits, or a ternary one, holds."""
    if bits == 2:
        return (2 * ((x - 1) / 2).round() + 1).clamp(-3, 3)
    return x.round().clamp(-LEVELS[bits], LEVELS[bits])


def scales(weight: torch.Tensor, bits: int, importance: torch.Tensor | None = None) -> torch.Tensor:
    """Return the scale of each output channel with the least squared error after rounding to the nearest integer.

    For weights that already are integers times a scale, the result is that scale.

    Args:
        weight: ``[out, in]``, float64.
        bits: 8, 4, 2 or ``TERNARY``.
        importance: ``[in]``, factor of each column's squared error; 1 for all columns without it.

    Returns:
        ``[out]``, positive. With eight bits, the scale maps the channel's largest weight to 127.
    """
    largest = weight.abs().amax(1)
    most = LEVELS[bits]
    unit = torch.where(largest > 0, largest / most, ZERO_CHANNEL_SCALE if bits == 2 else 1.0)
    if bits == 8:
        return unit
    weighted = torch.ones_like(weight[0]) if importance is None else importance
    best, least = unit, torch.full_like(largest, torch.inf)
    # these find the scale of weights that already are on the grid, and whose largest integer is k
    exact = torch.tensor([most / k for k in range(1, most + 1)], dtype=weight.dtype)
    candidates = round((1 - SMALLEST_RANGE[bits]) / RANGE_STEP) + 1
    ranges = torch.linspace(1, SMALLEST_RANGE[bits], candidates, dtype=weight.dtype)
    for factor in torch.cat([ranges, exact]):
        scale = unit * factor
        error = ((weight - nearest(weight / scale[:, None], bits) * scale[:, None]).square() * weighted).sum(1)
        better = error < least * (1 - 1e-9)
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def is_ternary(integers: torch.Tensor) -> bool:
    """Return whether all integer weights of a layer are -1, 0 or 1."""
    return bool((integers.abs() <= LEVELS[TERNARY]).all())


def stored_bits(integers: torch.Tensor) -> int:
    """Return the smallest bit width, 16, 8, 4 or 2, that holds the integer weights of a layer."""
    low, high = (int(integers.min()), int(integers.max())) if integers.numel() else (0, 0)
    if low < -128 or high > 127:
        return WIDE_BITS
    if is_ternary(integers) or (max(-low, high) <= LEVELS[2] and bool((integers % 2 != 0).all())):
        return 2
    # rounding uses -7 to 7, and training may have used -8, which four bits hold as well
    return 4 if -LEVELS[4] - 1 <= low and high <= LEVELS[4] else 8


__all__ = ["is_ternary", "nearest", "scales", "stored_bits"]
