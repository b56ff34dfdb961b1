"""Rewrite a model before it is captured, and run the eager model that the capture is compared with."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import nn
from torch.nn import functional as F

from svitc.frontends.capture.reparametrized import copy_model
from svitc.ir.outputs import restored, tensors_of
from svitc.ir.program import Program
from svitc.support.cpu_only import on_cpu

TOLERANCE = 1e-9  # absolute, in float64


def prepare(model: nn.Module) -> list[str]:
    """Replace modules that cannot be captured by equal ones, in place.

    A batch norm after which a border is written, of the norm's output for zero (the RepConv of many SViTs), becomes
    zero padding before batch norm. In inference the two differ only by rounding.

    Returns:
        Paths of the modules whose rounding changes.
    """
    inexact = []
    for path, module in list(model.named_modules()):
        border, exact = border_of(module)
        if path and border:
            norm = next(module.children())
            layers = OrderedDict(pad=nn.ZeroPad2d(border), bn=norm)
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, nn.Sequential(layers))
            inexact += [] if exact else [path]
    return inexact


def border_of(module: nn.Module) -> tuple[int, bool]:
    """Measure the border that a module writes around its batch norm, by running it; its name does not matter.

    Returns:
        Width of the border in pixels, 0 where there is none, and whether padding before the norm is bit-exact.
    """
    children = list(module.children())
    if len(children) != 1 or not isinstance(children[0], nn.BatchNorm2d) or children[0].running_mean is None:
        return 0, False
    if isinstance(module, nn.Sequential) or next(module.parameters(recurse=False), None) is not None:
        return 0, False
    double = copy_model(module).double().eval()
    norm = next(double.children())
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, norm.num_features, 4, 5, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)
        for parameter in norm.parameters():
            parameter.normal_(generator=generator)
        try:
            y = double(x)
            border = (y.shape[2] - x.shape[2]) // 2
            expected = norm(F.pad(x, (border,) * 4))
            same = torch.allclose(y, expected, rtol=0, atol=TOLERANCE)
        except Exception:  # the user's code, on an input that it may not expect
            return 0, False
    return (border, torch.equal(y, expected)) if same and border > 0 else (0, False)


def logits_of(output: object) -> Any:
    """Return the one tensor in a model's output, such as ``(logits, hook)``, or the output where there is not one."""
    tensors = tensors_of(output)
    return tensors[0] if len(tensors) == 1 else output


def reference(model: nn.Module, program: Program, x: torch.Tensor) -> Any:
    """Run the eager model from rest on a batch in the program's layout.

    The rewrites of ``prepare`` are applied to a copy of the model first, so that the program must agree to the last
    bit. Where ``info["fixed"]`` names neurons, for which the model merges time and batch, the two agree only for a
    batch of one.

    Args:
        x: ``[N, C, H, W]`` or ``[T, N, C, H, W]``.

    Returns:
        What ``program(x)`` returns, such as logits ``[N, classes]`` or ``[T, N, classes]``.
    """
    eager = copy_model(model).float().eval()
    prepare(eager)
    functional.reset_net(eager)
    with torch.inference_mode(), on_cpu():
        # a copy, as a model may change its input in place
        output = eager((x.transpose(0, 1) if program.info.get("batch_first") else x).clone())
    tensors = tensors_of(output)
    return restored(program.info, tensors[0] if len(tensors) == 1 else tuple(tensors))
