"""The bound on neighbouring weights that keeps integer products exact on x86 processors without VNNI.

There a matrix product of bytes is computed with VPMADDUBSW, which adds the products of two neighbouring uint8 inputs
and int8 weights in int16, and saturates (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2). In
ONNX Runtime's kernels rows 2i and 2i + 1 of ``MatMulInteger``'s second operand are neighbours. Nothing saturates if the
largest input times the sum of two neighbouring weights of one sign stays within int16.
"""

from __future__ import annotations

import torch

INT16_MAX = 32_767


def pair_limit(largest_input: int) -> int:
    """Return how large two neighbouring weights of one sign may be together, for inputs up to a byte."""
    return INT16_MAX // max(1, largest_input)


def largest_pair(weight: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of the sum of two neighbouring weights of one sign, for each output channel.

    Neighbours are the input channels 2i and 2i + 1, tap after tap. If the number of channels is odd, a matrix product
    pairs across taps, while a convolution may begin anew in each: both count.

    Args:
        weight: ``[out, in, taps...]`` or ``[out, in]``.

    Returns:
        ``[out]``, of the weight's type.
    """
    taps = weight.reshape(*weight.shape[:2], -1).transpose(1, 2)  # [out, taps, in]
    across = _largest_pair(taps.flatten(1))
    return torch.maximum(across, _largest_pair(taps)) if weight.shape[1] % 2 and taps.shape[1] > 1 else across


def _largest_pair(weight: torch.Tensor) -> torch.Tensor:
    """Return the same for neighbours along the last dimension of ``[out, ..., in]``."""
    pairs = torch.nn.functional.pad(weight, (0, weight.shape[-1] % 2)).unflatten(-1, (-1, 2))
    largest = torch.maximum(pairs.clamp_min(0).sum(-1), -pairs.clamp_max(0).sum(-1))
    return largest.flatten(1).amax(1)


__all__ = ["INT16_MAX", "largest_pair", "pair_limit"]
