"""Projections as matrix products: the rows that the weights are multiplied with, and the outputs they give."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from svitc.ir import ops


def solvable(module: nn.Module | None) -> bool:
    """Return whether a layer is one matrix product: a linear layer, or a convolution that is not grouped."""
    return isinstance(module, nn.Linear) or (isinstance(module, ops.CONVOLUTIONS) and module.groups == 1)


def rows(
    module: nn.Module, x: torch.Tensor, y: torch.Tensor, max_rows: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs and outputs of a layer, position by position.

    Args:
        module: a layer for which ``solvable`` holds.
        x: its input.
        y: values at the positions of its output: ``[N, C', ...]``, or ``[..., C']`` for a linear layer.
        max_rows: draw about this many positions at random, or take all if there are fewer.
        generator: the source of randomness.

    Returns:
        ``[rows, D]``, columns ordered as in ``weight.flatten(1)``, and ``[rows, C']``.
    """
    if isinstance(module, nn.Linear):
        flat, out = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        index = _draw(len(flat), max_rows, generator)
        return flat[index], out[index]
    assert isinstance(module, ops.CONVOLUTIONS)
    flat1d = isinstance(module, nn.Conv1d)  # handled as an image of one row
    kernel, dilation, padding, stride = (  # after capture, padding is always numbers, not "same" or "valid"
        (first, *map(int, value)) if flat1d else tuple(map(int, value))
        for first, value in ((1, module.kernel_size), (1, module.dilation), (0, module.padding), (1, module.stride))
    )
    share = max(1, max_rows // len(x))
    parts_in, parts_out = [], []
    for start in range(0, len(x), 16):  # in chunks, since unfolding takes kernel-size times the memory
        chunk = x[start : start + 16]
        chunk = chunk.unsqueeze(2) if flat1d else chunk
        if max(kernel) == 1 and max(padding) == 0:
            patches = chunk[:, :, :: stride[0], :: stride[1]].flatten(2)
        else:
            patches = F.unfold(chunk, kernel, dilation, padding, stride)
        out = y[start : start + 16].flatten(2)
        index = torch.stack([_draw(out.shape[2], share, generator) for _ in range(len(chunk))])[:, None]
        parts_in.append(patches.gather(2, index.expand(-1, patches.shape[1], -1)).mT.flatten(0, 1))
        parts_out.append(out.gather(2, index.expand(-1, out.shape[1], -1)).mT.flatten(0, 1))
    return torch.cat(parts_in), torch.cat(parts_out)


def _draw(count: int, limit: int, generator: torch.Generator) -> torch.Tensor:
    """Return ``limit`` of ``count`` indices at random, or all of them in order if there are fewer."""
    if count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:limit]
