"""Coordinate descent on rounded weights: one weight of each channel after another, and the scale of the channel.

GPTQ fixes each weight once, before it knows the errors of those after it, at a scale that was chosen for the nearest
numbers. Both are mended here: a weight takes the level that is best beside all others as they are now, and a scale its
least-squares value for the levels. Either step lowers the error or keeps it.

Source: Behdin et al., "QuantEase: Optimization-based Quantization for Language Models", arXiv 2309.01885; the scales in
between are svitc's own.
"""

from __future__ import annotations

import torch

from svitc.quantization.weight_grid import nearest

SWEEPS = 8  # at most; few weights move after the fourth
BLOCK = 64  # number of columns that are visited before the columns after them learn of the changes


def refine(
    weight: torch.Tensor, levels: torch.Tensor, scale: torch.Tensor, bits: int, hessian: torch.Tensor
) -> torch.Tensor:
    """Lower the squared error of a layer's outputs, ``sum((W - Q) H (W - Q)^T)``, without leaving the grid.

    Args:
        weight: real-valued weights, ``[out, in]``, float64; columns are visited in their order.
        levels: their integers at the start, ``[out, in]``.
        scale: scale of each output channel, ``[out]``, positive.
        bits: 4, 2 or ``TERNARY``.
        hessian: ``[in, in]``, positive definite.

    Returns:
        Weights on the grid: integers times a scale for each channel, ``[out, in]``.
    """
    levels, target = levels.clone(), weight @ hessian
    for _ in range(SWEEPS):
        scale = _best_scale(target, levels, scale, hessian)
        gradient = target - (levels * scale[:, None]) @ hessian
        moved = False
        for start in range(0, weight.shape[1], BLOCK):
            block = slice(start, start + BLOCK)
            before = levels[:, block].clone()
            _sweep(levels[:, block], gradient[:, block], scale, bits, hessian[block, block])
            change = levels[:, block] - before
            if bool(change.any()):
                moved = True
                gradient[:, start + BLOCK :] -= (change * scale[:, None]) @ hessian[block, start + BLOCK :]
        if not moved:
            break
    return levels * _best_scale(target, levels, scale, hessian)[:, None]


def _sweep(levels: torch.Tensor, gradient: torch.Tensor, scale: torch.Tensor, bits: int, hessian: torch.Tensor) -> None:
    """Give each weight of a block of columns its best level, one column after another, in place.

    Args:
        levels: integers, ``[out, block]``; changed.
        gradient: minus half the gradient of the squared error, ``[out, block]``; changed.
        scale: ``[out]``.
        bits: 4, 2 or ``TERNARY``.
        hessian: ``[block, block]``.
    """
    curvature = hessian.diagonal()
    for i in range(levels.shape[1]):
        change = nearest(levels[:, i] + gradient[:, i] / (curvature[i] * scale), bits) - levels[:, i]
        levels[:, i] += change
        gradient -= (change * scale)[:, None] * hessian[i]


def _best_scale(target: torch.Tensor, levels: torch.Tensor, scale: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Return the least-squares scale of each channel for its levels; the old one where that is not positive.

    Args:
        target: the real-valued weights times the Hessian, ``[out, in]``.
        levels: integers, ``[out, in]``.
        scale: the old scales, ``[out]``.
        hessian: ``[in, in]``.
    """
    best = (target * levels).sum(1) / ((levels @ hessian) * levels).sum(1)
    return torch.where(best > 0, best, scale)


__all__ = ["refine"]
