"""Round weights one column after the other, each correcting the errors of those before (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

import torch

from svitc.quantization.weight_grid import nearest, scales

DAMPING = 0.01  # of the mean of the Hessian's diagonal


BLOCK = 128  # columns that errors are passed on within at once


def round_weights(weight: torch.Tensor, bits: int, hessian: torch.Tensor | None = None) -> torch.Tensor:
    """Weights as a scale for each channel times whole numbers.

    With a Hessian the error of each column is made up for by the columns after it (Frantar et al., "GPTQ", ICLR 2023),
    the most important ones first: with spikes as inputs it is how often two of them fire together.

    Args:
        weight: ``[out, in]``.
        hessian: ``[in, in]``, second moments of the layer's inputs; nearest numbers without it.

    Returns:
        of the weight's shape and type.
    """
    flat = weight.double()
    if hessian is None or bits == 8 or not bool(hessian.diagonal().sum() > 0):
        scale = scales(flat, bits)[:, None]
        return (nearest(flat / scale, bits) * scale).to(weight.dtype)
    return _compensated(flat, bits, hessian).to(weight.dtype)


def _compensated(weight: torch.Tensor, bits: int, hessian: torch.Tensor) -> torch.Tensor:
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True)
    importance = diagonal + DAMPING * diagonal.mean()
    scale = scales(weight, bits, importance)
    damped = hessian[order][:, order].clone()
    damped.diagonal().add_(DAMPING * diagonal.mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    left = weight[:, order].clone()
    rounded = torch.empty_like(left)
    for start in range(0, left.shape[1], BLOCK):
        end = min(start + BLOCK, left.shape[1])
        errors = torch.zeros_like(left[:, start:end])
        for i in range(start, end):
            rounded[:, i] = nearest(left[:, i] / scale, bits) * scale
            error = (left[:, i] - rounded[:, i]) / upper[i, i]
            left[:, i:end] -= error[:, None] * upper[i, i:end]
            errors[:, i - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    found = torch.empty_like(rounded)
    found[:, order] = rounded
    return found
