"""Weights in 8, 4 or 2 bits: the whole numbers of each, the scale of a channel, and rounding that knows the data.

A channel's weights are a scale times whole numbers. Eight and four bits hold -127 to 127 and -7 to 7; two bits hold the
four odd numbers from -3 to 3, which for weights spread like a normal distribution leaves two thirds of the error that
-1, 0 and 1 would (Max, "Quantizing for minimum distortion", 1960).
"""

from __future__ import annotations

import torch

from svitc.ir.quantized_modules import LEVELS

NARROWEST = 0.2  # of the largest weight: the narrowest range that is tried
TRIED = 41
NOTHING = 2.0**-100  # scale of a channel without weights: two bits hold no zero


def nearest(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest of the whole numbers that so many bits hold."""
    if bits == 2:
        return (2 * ((x - 1) / 2).round() + 1).clamp(-3, 3)
    return x.round().clamp(-LEVELS[bits], LEVELS[bits])


def scales(weight: torch.Tensor, bits: int, importance: torch.Tensor | None = None) -> torch.Tensor:
    """The scale of each channel that leaves the least squared error when its weights go to the nearest number.

    Weights that are a scale times whole numbers already find that scale again.

    Args:
        weight: ``[out, in]``, float64.
        importance: ``[in]``, of each column; all the same without it.

    Returns:
        ``[out]``, positive. With eight bits it is the largest weight's.
    """
    largest = weight.abs().amax(1)
    most = LEVELS[bits]
    unit = torch.where(largest > 0, largest / most, NOTHING if bits == 2 else 1.0)
    if bits == 8:
        return unit
    weighted = torch.ones_like(weight[0]) if importance is None else importance
    best, least = unit, torch.full_like(largest, torch.inf)
    whole = torch.tensor([most / k for k in range(1, most + 1)], dtype=weight.dtype)
    for factor in torch.cat([torch.linspace(1, NARROWEST, TRIED, dtype=weight.dtype), whole]):
        scale = unit * factor
        error = ((weight - nearest(weight / scale[:, None], bits) * scale[:, None]).square() * weighted).sum(1)
        better = error < least * (1 - 1e-9)
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def stored_bits(whole: torch.Tensor) -> int:
    """The fewest bits that hold a layer's whole numbers."""
    largest = int(whole.abs().max()) if whole.numel() else 0
    if largest <= LEVELS[2] and bool((whole % 2 != 0).all()):
        return 2
    return 4 if largest <= LEVELS[4] else 8


__all__ = ["nearest", "scales", "stored_bits"]
