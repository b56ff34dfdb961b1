"""Wrappers around models: of parallel training, of compilation, of averaging."""

from __future__ import annotations

from torch import nn
from torch._dynamo import OptimizedModule
from torch.optim.swa_utils import AveragedModel

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model in wrappers that change nothing in what it computes for one input."""
    while True:
        if isinstance(model, WRAPPERS):
            model = model.module
        elif isinstance(model, OptimizedModule):
            model = model._orig_mod
        else:
            return model
