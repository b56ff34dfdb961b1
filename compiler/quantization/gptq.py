"""Rounding of weights with error compensation: GPTQ."""

from __future__ import annotations

import torch

from svitc.quantization.coordinate_descent import refine
from svitc.quantization.weight_grid import nearest, scales

DAMPING = 0.01  # added to the diagonal of the Hessian, as a fraction of its mean
BLOCK = 128  # number of columns that are rounded before their errors are passed on to all columns after them


def round_weights(weight: torch.Tensor, bits: int, hessian: torch.Tensor | None = None) -> torch.Tensor:
    """Round weights to integers times one scale for each output channel.

    With a Hessian, the columns after a rounded column make up for its error (E. Frantar et al., "GPTQ: Accurate
    Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023). Columns with large diagonal
    elements come first. Where the inputs are spikes, the Hessian says how often two inputs spike together. Sweeps over
    all columns and the scales follow, as long as they lower the error (``coordinate_descent.py``).

    Args:
        weight: ``[out, in]``.
        bits: 8, 4, 2 or ``TERNARY``.
        hessian: ``[in, in]``, second moments of the layer's inputs, float64. Without it, or with 8 bits, every weight
            goes to the nearest number.

    Returns:
        The rounded weights, with the shape and type of ``weight``.
    """
    exact = weight.double()
    if hessian is None or bits == 8 or not bool(hessian.diagonal().sum() > 0):
        scale = scales(exact, bits)[:, None]
        return (nearest(exact / scale, bits) * scale).to(weight.dtype)
    return _gptq(exact, bits, hessian).to(weight.dtype)


def _gptq(weight: torch.Tensor, bits: int, hessian: torch.Tensor) -> torch.Tensor:
    """Round weights ``[out, in]``, float64, column by column, with error compensation, and refine the result."""
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True)
    importance = diagonal + DAMPING * diagonal.mean()
    scale = scales(weight, bits, importance)
    damped = hessian[order][:, order].clone()
    damped.diagonal().add_(DAMPING * diagonal.mean())
    ordered = weight[:, order]
    levels = compensated(ordered, scale, bits, damped)
    result = torch.empty_like(weight)
    result[:, order] = refine(ordered, levels, scale, bits, damped)
    return result


def compensated(weight: torch.Tensor, scale: torch.Tensor, bits: int, hessian: torch.Tensor) -> torch.Tensor:
    """Return the integers of weights that are rounded column by column, each making up for those before it.

    Args:
        weight: ``[out, in]``, float64.
        scale: scale of each output channel, ``[out]``.
        bits: 4, 2 or ``TERNARY``.
        hessian: ``[in, in]``, positive definite.
    """
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    remaining, levels = weight.clone(), torch.empty_like(weight)
    for start in range(0, remaining.shape[1], BLOCK):
        end = min(start + BLOCK, remaining.shape[1])
        errors = torch.zeros_like(remaining[:, start:end])
        for i in range(start, end):
            levels[:, i] = nearest(remaining[:, i] / scale, bits)
            error = (remaining[:, i] - levels[:, i] * scale) / upper[i, i]
            remaining[:, i:end] -= error[:, None] * upper[i, i:end]
            errors[:, i - start] = error
        remaining[:, end:] -= errors @ upper[start:end, end:]
    return levels


__all__ = ["compensated", "round_weights"]
