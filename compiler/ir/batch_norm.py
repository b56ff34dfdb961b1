"""Batch norms in inference mode, as a scale and a shift for each channel."""

from __future__ import annotations

import torch
from torch import nn

from svitc.errors import InternalError
from svitc.ir import ops


def scale_and_shift(norm: nn.Module | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift of a batch norm in inference mode, ``batch_norm(x) = x * scale + shift``.

        scale = gamma / sqrt(var + eps)    shift = beta - mean * scale

    Returns:
        two float64 tensors of shape ``[num_features]``.

    Raises:
        InternalError: the module is not a batch norm, or has no running statistics.
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
    """Replace weight and bias of a layer by frozen ones, rounded to the layer's data type.

    Args:
        layer: a convolution or linear layer, changed in place.
        weight: of the layer's weight shape.
        bias: of shape ``[channels]``.
    """
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)  # type: ignore[arg-type]
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)  # type: ignore[arg-type]
