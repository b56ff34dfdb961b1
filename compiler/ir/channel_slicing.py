"""Slicing: cut the parameters of one layer down to chosen elements, widths and all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from svitc.ir import axes, ops
from svitc.ir.axes import Dim
from svitc.ir.program import Program

Chosen = Callable[[Dim], np.ndarray | None]


def selection(program: Program, masks: Mapping[str, np.ndarray]) -> tuple[Chosen, dict[int, int]]:
    """What a plan's complete masks leave of any dimension of ``program``.

    Returns:
        a function from a dimension to the indices that stay, None for all of them; and the new size of each
        axis that a group has, by its id.
    """
    by_axis: dict[int, tuple] = {}
    sizes: dict[int, int] = {}
    for group in program.groups:
        mask = masks[group.name]
        by_axis[id(group.axis)] = (group, mask)
        sizes[id(group.axis)] = int(mask.sum(axis=1).max())
        if group.head_axis is not None:
            by_axis.setdefault(id(group.head_axis), (group, mask))
            sizes[id(group.head_axis)] = int(mask.any(axis=1).sum())

    def chosen(dim: Dim) -> np.ndarray | None:
        # the head dimension's mask covers its heads; heads alone only where no group of theirs is here
        found = [by_axis[id(axis)] for axis in dim if id(axis) in by_axis]
        inner = [(group, mask) for group, mask in found if group.axis in dim] or found[:1]
        if not inner or all(mask.all() for _, mask in inner):
            return None
        total = np.ones(axes.size(dim), dtype=bool)
        for group, mask in inner:
            total &= group.mask(dim, mask)
        return np.flatnonzero(total)

    return chosen, sizes


def slice_tensor(tensor: torch.Tensor, index: Sequence[np.ndarray | None]) -> torch.Tensor:
    """The elements at ``index`` along each dimension (None keeps all), contiguous."""
    for dim, chosen in enumerate(index):
        if chosen is not None and len(chosen) != tensor.shape[dim]:
            tensor = tensor.index_select(dim, torch.from_numpy(np.ascontiguousarray(chosen)))
    return tensor.contiguous()


def slice_module(module: nn.Module, chosen: Mapping[str, Sequence[np.ndarray | None]]) -> None:
    """Cut each named parameter or buffer of ``module`` in place, and set its widths from what is left."""
    depthwise = isinstance(module, ops.CONVOLUTIONS) and module.groups == module.in_channels > 1
    with torch.no_grad():
        for name, index in chosen.items():
            old = getattr(module, name)
            new = slice_tensor(old.detach(), index)
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new.clone() if new is old else new, requires_grad=old.requires_grad)
            setattr(module, name, new)
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
