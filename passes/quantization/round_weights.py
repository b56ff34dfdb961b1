"""RoundWeights: each layer's weights as whole numbers of few bits times a scale, while the program still trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from svitc.analysis.calibration import Calibration, Moments
from svitc.ir import ops
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage
from svitc.quantization.gptq import round_weights

CONSTANT = 1e-9  # of a channel's mean square: a variance below it is rounding


class RoundWeights(Pass):
    """Round weights to so many bits, with errors made up for by the layer's other weights, its norm and its bias.

    before   norm(W x)                      W real numbers
    after    norm'(W' x)                    W' a scale for each channel times whole numbers (weight_grid.py)

    Rounding looks at how often two inputs fire together where calibration images have told (GPTQ on spikes). What is
    left changes a channel's mean and variance: a batch norm behind gets the new ones in closed form, a bias the mean.
    A batch norm or a leak that is folded in later multiplies a channel as a whole, so its whole numbers stay what they
    are and Quantize finds them again.

    Refuses nothing; a layer that never sees a spike in calibration is rounded to nearest numbers and named in
    ``silent``.

    Args:
        bits: layer -> 8, 4 or 2.
        calibration: of the very program that is rounded, or None.
        memo: rounded weights by layer and bits, for programs whose weights are the same each time.
    """

    requires = (Stage.PRUNED, Stage.PRUNED)

    def __init__(
        self,
        bits: Mapping[str, int],
        calibration: Calibration | None = None,
        memo: dict[Any, torch.Tensor] | None = None,
    ) -> None:
        self.bits, self.calibration = dict(bits), calibration
        self.memo = {} if memo is None else memo
        self.silent: list[str] = []

    def apply(self, program: Program) -> PassResult:
        result = PassResult(self.name)
        for node in program.graph.nodes:
            name = str(node.target)
            if name in self.bits and name not in result.changed and ops.is_projection(program.module_of(node)):
                self._round(program, node, self.bits[name])
                result.changed.append(name)
        return result

    def _round(self, program: Program, node: fx.Node, bits: int) -> None:
        layer: Any = program.module_of(node)
        name = str(node.target)
        moments = self.calibration.moments.get(name) if self.calibration is not None else None
        if moments is not None and not bool(moments.products.diagonal().sum() > 0):
            self.silent.append(name)
            moments = None
        norm = _norm(program, node)
        before = layer.weight.detach().flatten(1).clone()
        key = (name, bits)
        if key not in self.memo:
            self.memo[key] = round_weights(before, bits, _hessian(moments, norm is not None or layer.bias is not None))
        after = self.memo[key]
        with torch.no_grad():
            layer.weight.copy_(after.reshape(layer.weight.shape))
            if moments is not None:
                _make_up(layer, norm, before.double(), after.double(), moments)


def _norm(program: Program, node: fx.Node) -> Any:
    """The batch norm that alone reads a layer, or None."""
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    return program.module_of(reader) if reader is not None and ops.is_batch_norm(program.module_of(reader)) else None


def _hessian(moments: Moments | None, free_mean: bool) -> torch.Tensor | None:
    if moments is None:
        return None
    return moments.covariance if free_mean else moments.products / moments.rows


def _make_up(layer: Any, norm: Any, before: torch.Tensor, after: torch.Tensor, moments: Moments) -> None:
    """Give the norm, or the bias, what keeps each channel's mean and variance on the calibration images."""
    shift = (after - before) @ moments.mean
    if norm is not None:
        then, now = (((w @ moments.covariance) * w).sum(1) for w in (before, after))
        noise = CONSTANT * (before.square() @ moments.products.diagonal()) / moments.rows
        ratio = torch.where(then > noise, now / then, 1.0).clamp(1e-3, 1e3)
        mean = before @ moments.mean + (0 if layer.bias is None else layer.bias.double())
        off = norm.running_mean.double() - mean  # what is learnt is seldom the calibration images' own
        norm.running_mean.copy_(mean + shift + off * ratio.sqrt())
        norm.running_var.copy_(((norm.running_var.double() + norm.eps) * ratio - norm.eps).clamp_min(0))
    elif layer.bias is not None:
        layer.bias.sub_(shift.to(layer.bias.dtype))


__all__ = ["RoundWeights"]
