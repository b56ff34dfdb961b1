"""Wrappers around models: of parallel training, of compilation, of averaging."""

from __future__ import annotations

import sys

from torch import nn
from torch.optim.swa_utils import AveragedModel

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model in wrappers that change nothing in what it computes for one input."""
    while True:
        if isinstance(model, WRAPPERS):
            model = model.module
        elif _is_compiled(model):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _is_compiled(model: nn.Module) -> bool:
    """Return whether ``torch.compile`` made a model; then the compiler is loaded, which takes a second to import."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and isinstance(model, dynamo.OptimizedModule)
