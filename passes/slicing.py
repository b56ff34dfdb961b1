"""Slicing: cut the parameters of one layer down to chosen elements, widths and all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from svitc import ops


def cut(tensor: torch.Tensor, index: Sequence[np.ndarray | None]) -> torch.Tensor:
    """The elements at ``index`` along each dimension (None keeps all), contiguous."""
    for dim, chosen in enumerate(index):
        if chosen is not None and len(chosen) != tensor.shape[dim]:
            tensor = tensor.index_select(dim, torch.from_numpy(np.ascontiguousarray(chosen)))
    return tensor.contiguous()


def cut_module(module: nn.Module, chosen: Mapping[str, Sequence[np.ndarray | None]]) -> None:
    """Cut each named parameter or buffer of ``module`` in place, and set its widths from what is left."""
    depthwise = isinstance(module, ops.CONVOLUTIONS) and module.groups == module.in_channels > 1
    with torch.no_grad():
        for name, index in chosen.items():
            old = getattr(module, name)
            new = cut(old.detach(), index)
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
