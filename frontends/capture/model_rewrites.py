"""Prepare: what is rewritten in a model before it is captured, and the eager model to compare the capture with."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import nn
from torch.nn import functional as F

from svitc.ir.program import Program

SAME = 1e-9  # in float64


def prepare(model: nn.Module) -> list[str]:
    """Replace what cannot be captured as it is written by what is equal to it, in place.

    A batch norm that then writes a border of what it makes of zero (the RepConv of many SViTs) becomes zero
    padding before batch norm. In inference the two differ by rounding alone.

    Returns:
        Paths of what now rounds otherwise.
    """
    found = []
    for path, module in list(model.named_modules()):
        border, exact = border_of(module)
        if path and border:
            norm = next(module.children())
            layers = OrderedDict(pad=nn.ZeroPad2d(border), bn=norm)
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, nn.Sequential(layers))
            found += [] if exact else [path]
    return found


def border_of(module: nn.Module) -> tuple[int, bool]:
    """Width of the border that a module writes around its batch norm, by what it does, not by its name; or 0.

    Also whether padding before the norm is the same to the last bit.
    """
    children = list(module.children())
    if len(children) != 1 or not isinstance(children[0], nn.BatchNorm2d) or children[0].running_mean is None:
        return 0, False
    if isinstance(module, nn.Sequential) or next(module.parameters(recurse=False), None) is not None:
        return 0, False
    twin = copy.deepcopy(module).double().eval()
    norm = next(twin.children())
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, norm.num_features, 4, 5, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)
        for parameter in norm.parameters():
            parameter.normal_(generator=generator)
        try:
            y = twin(x)
            border = (y.shape[2] - x.shape[2]) // 2
            want = norm(F.pad(x, (border,) * 4))
            same = torch.allclose(y, want, rtol=0, atol=SAME)
        except Exception:  # the user's code, on an input that it may not expect
            return 0, False
    return (border, torch.equal(y, want)) if same and border > 0 else (0, False)


def logits_of(output: Any) -> Any:
    """The one tensor in what a model returns, such as ``(logits, hook)``; whatever else it is, unchanged."""
    parts = output.values() if isinstance(output, dict) else output
    if not isinstance(output, dict | tuple | list):
        return output
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    return tensors[0] if len(tensors) == 1 else output


def reference(model: nn.Module, program: Program, x: torch.Tensor) -> Any:
    """What the eager model computes, from rest, on a batch in the program's layout.

    The rewrites of ``prepare`` are made to a copy of the model first, so that the program must agree to the last
    bit. Where ``info["fixed"]`` names neurons that run time and batch together, the two agree on one image at a
    time only.
    """
    eager = copy.deepcopy(model).float().eval()
    prepare(eager)
    functional.reset_net(eager)
    with torch.inference_mode():
        return logits_of(eager(x.transpose(0, 1) if program.info.get("batch_first") else x))
