"""A projection as a matrix product: the rows that its weights are multiplied with, and the outputs they give."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from svitc.ir import ops


def solvable(module: nn.Module | None) -> bool:
    """Whether a layer's output is one matrix product: a linear layer, or a convolution that is not grouped."""
    return isinstance(module, nn.Linear) or (isinstance(module, ops.CONVOLUTIONS) and module.groups == 1)


def rows(
    module: nn.Module, x: torch.Tensor, y: torch.Tensor, most: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and outputs of a layer, position by position.

    Args:
        x: the layer's input.
        y: values at its output's positions: ``[N, C', ...]``, or ``[..., C']`` for a linear layer.
        most: at most about this many positions, drawn at random.

    Returns:
        ``[rows, D]``, columns ordered as ``weight.flatten(1)``'s, and ``[rows, C']``.
    """
    if isinstance(module, nn.Linear):
        flat, out = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        index = _draw(len(flat), most, generator)
        return flat[index], out[index]
    assert isinstance(module, ops.CONVOLUTIONS)
    flat1d = isinstance(module, nn.Conv1d)  # as an image of one row
    kernel, dilation, padding, stride = (  # capture leaves no padding that is given by name
        (first, *map(int, value)) if flat1d else tuple(map(int, value))
        for first, value in ((1, module.kernel_size), (1, module.dilation), (0, module.padding), (1, module.stride))
    )
    share = max(1, most // len(x))
    parts_in, parts_out = [], []
    for start in range(0, len(x), 16):  # unfolding copies kernel-size times; never everything at once
        some = x[start : start + 16]
        some = some.unsqueeze(2) if flat1d else some
        if max(kernel) == 1 and max(padding) == 0:
            patches = some[:, :, :: stride[0], :: stride[1]].flatten(2)
        else:
            patches = F.unfold(some, kernel, dilation, padding, stride)
        out = y[start : start + 16].flatten(2)
        index = torch.stack([_draw(out.shape[2], share, generator) for _ in range(len(some))])[:, None]
        parts_in.append(patches.gather(2, index.expand(-1, patches.shape[1], -1)).mT.flatten(0, 1))
        parts_out.append(out.gather(2, index.expand(-1, out.shape[1], -1)).mT.flatten(0, 1))
    return torch.cat(parts_in), torch.cat(parts_out)


def _draw(count: int, most: int, generator: torch.Generator) -> torch.Tensor:
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:most]
