"""Slicing: reduce the parameters of a layer to selected channels, and update its channel counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from svitc.ir import axes, ops
from svitc.ir.axes import Dim
from svitc.ir.channel_groups import ChannelGroup
from svitc.ir.program import Program

# function from a dimension to the indices of the elements that remain; None where all of them remain
Chosen: TypeAlias = Callable[[Dim], np.ndarray | None]


def selection(program: Program, masks: Mapping[str, np.ndarray]) -> tuple[Chosen, dict[int, int]]:
    """Return which elements of any dimension of ``program`` remain after pruning.

    Args:
        program: typed.
        masks: name of each channel group -> boolean mask of shape ``[heads, channels per head]``.

    Returns:
        a function from a dimension to the indices of the elements that remain, None for all of them; and
        ``id`` of each axis of a group -> the new size of the axis.
    """
    by_axis: dict[int, tuple[ChannelGroup, np.ndarray]] = {}
    sizes: dict[int, int] = {}
    for group in program.groups:
        mask = masks[group.name]
        by_axis[id(group.axis)] = (group, mask)
        sizes[id(group.axis)] = int(mask.sum(axis=1).max())
        if group.head_axis is not None:
            by_axis.setdefault(id(group.head_axis), (group, mask))
            sizes[id(group.head_axis)] = int(mask.any(axis=1).sum())

    def chosen(dim: Dim) -> np.ndarray | None:
        # A group's mask covers its heads, too. A mask for heads alone is needed only if the dimension contains
        # the head axis, but not the axis of a group within the heads.
        pruned = [by_axis[id(axis)] for axis in dim if id(axis) in by_axis]
        relevant = [(group, mask) for group, mask in pruned if group.axis in dim] or pruned[:1]
        if not relevant or all(mask.all() for _, mask in relevant):
            return None
        remaining = np.ones(axes.size(dim), dtype=bool)
        for group, mask in relevant:
            remaining &= group.mask(dim, mask)
        return np.flatnonzero(remaining)

    return chosen, sizes


def slice_tensor(tensor: torch.Tensor, index: Sequence[np.ndarray | None]) -> torch.Tensor:
    """Return the elements of a tensor at ``index`` along each dimension, as a contiguous tensor; None keeps all."""
    for dim, chosen in enumerate(index):
        if chosen is not None and len(chosen) != tensor.shape[dim]:
            tensor = tensor.index_select(dim, torch.from_numpy(np.ascontiguousarray(chosen)))
    return tensor.contiguous()


def slice_module(module: nn.Module, chosen: Mapping[str, Sequence[np.ndarray | None]]) -> None:
    """Slice parameters and buffers of ``module`` in place, and set its channel counts to the new shapes.

    Args:
        module: a convolution, linear layer or batch norm.
        chosen: name of a parameter or buffer -> indices to keep in each dimension, None for all.
    """
    depthwise = isinstance(module, ops.CONVOLUTIONS) and module.groups == module.in_channels == module.out_channels > 1
    with torch.no_grad():
        for name, index in chosen.items():
            tensor = getattr(module, name)
            sliced = slice_tensor(tensor.detach(), index)
            if isinstance(tensor, nn.Parameter):
                sliced = nn.Parameter(
                    sliced.clone() if sliced is tensor else sliced, requires_grad=tensor.requires_grad
                )
            setattr(module, name, sliced)
    if isinstance(module, ops.CONVOLUTIONS):
        module.out_channels = module.weight.shape[0]
        if depthwise:
            module.groups = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif ops.is_batch_norm(module):
        assert module.running_mean is not None
        module.num_features = module.running_mean.shape[0]
