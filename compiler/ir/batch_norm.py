"""What an inference-mode batch norm does to a channel, as one product and one sum."""

from __future__ import annotations

import torch
from torch import nn

from svitc.errors import InternalError
from svitc.ir import ops


def scale_and_shift(norm: nn.Module | None) -> tuple[torch.Tensor, torch.Tensor]:
    """``batch_norm(x) = x * scale + shift``, one of each for a channel, in float64.

        scale = gamma / sqrt(var + eps)    shift = beta - mean * scale

    Raises:
        InternalError: not a batch norm, or one without statistics.
    """
    if not isinstance(norm, ops.BATCH_NORMS) or norm.running_mean is None or norm.running_var is None:
        raise InternalError(f"{norm} is no batch norm with statistics")
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
    return scale, shift


def set_weights(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Give a layer other weights, rounded to the type of its own; they no longer train."""
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)  # type: ignore[arg-type]
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)  # type: ignore[arg-type]
