"""RoundWeights: rounds weights to integers of few bits times a scale, in a program that can still be trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from svitc.analysis.calibration import Calibration, Moments
from svitc.ir import ops
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage
from svitc.ir.quantized_modules import WIDE_BITS
from svitc.quantization.gptq import round_weights
from svitc.quantization.grids import kept_grid

CONSTANT = 1e-9  # share of a channel's mean square below which a variance is only rounding


class RoundWeights(Pass):
    """Round weights to few bits and compensate with the layer's other weights, its batch norm and its bias.

    before   norm(W x)                      W real numbers
    after    norm'(W' x)                    W' a scale for each channel times integers (weight_grid.py)

    Where calibration images are available, rounding takes into account how often two inputs fire together (GPTQ on
    spikes). The remaining error changes a channel's mean and variance: a batch norm after the layer gets the new ones
    in closed form, a bias the mean. A batch norm or a leak that is folded in later scales whole channels, so the
    integers stay the same and QuantizeWeights finds them again.

    A layer that was trained on a grid of no more levels keeps its weights, and so does one of 16 bits, which
    QuantizeWeights alone rounds.

    Refuses nothing; a layer that never sees a spike in calibration is rounded to the nearest numbers and listed in
    ``silent``.

    Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR
    2023.

    Args:
        bits: layer -> 16, 8, 4, 2 or ``TERNARY``.
        calibration: statistics of the same program, or None.
        memo: cache of rounded weights by layer and bits, for programs with the same weights.
    """

    requires = (Stage.PRUNED, Stage.PRUNED)

    def __init__(
        self,
        bits: Mapping[str, int],
        calibration: Calibration | None = None,
        memo: dict[tuple[str, int], torch.Tensor] | None = None,
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
        """Round the weights of one layer."""
        layer: Any = program.module_of(node)
        name = str(node.target)
        if bits == WIDE_BITS:
            return
        if kept_grid(program.info, name, layer.weight, bits) is not None:
            return
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
                _compensate(layer, norm, before.double(), after.double(), moments)


def _norm(program: Program, node: fx.Node) -> nn.BatchNorm2d | None:
    """Return the batch norm that is the only reader of a layer, or None."""
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    module = program.module_of(reader) if reader is not None else None
    return module if ops.is_batch_norm(module) else None


def _hessian(moments: Moments | None, free_mean: bool) -> torch.Tensor | None:
    """Return the second moments that weigh the rounding errors: the covariance if the mean is corrected later."""
    if moments is None:
        return None
    return moments.covariance if free_mean else moments.products / moments.rows


def _compensate(
    layer: nn.Conv2d, norm: nn.BatchNorm2d | None, before: torch.Tensor, after: torch.Tensor, moments: Moments
) -> None:
    """Set the batch norm or the bias so that each channel keeps its mean and variance on the calibration images.

    Args:
        layer: the layer with its new weights.
        norm: the batch norm after it, or None.
        before: old weights, ``[out, D]``.
        after: new weights, ``[out, D]``.
        moments: of its input.
    """
    shift = (after - before) @ moments.mean
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        old_variance, new_variance = (((w @ moments.covariance) * w).sum(1) for w in (before, after))
        noise = CONSTANT * (before.square() @ moments.products.diagonal()) / moments.rows
        ratio = torch.where(old_variance > noise, new_variance / old_variance, 1.0).clamp(1e-3, 1e3)
        mean = before @ moments.mean + (0 if layer.bias is None else layer.bias.double())
        # the learned mean usually differs from that of the calibration images
        deviation = norm.running_mean.double() - mean
        norm.running_mean.copy_(mean + shift + deviation * ratio.sqrt())
        norm.running_var.copy_(((norm.running_var.double() + norm.eps) * ratio - norm.eps).clamp_min(0))
    elif layer.bias is not None:
        layer.bias.sub_(shift.to(layer.bias.dtype))


__all__ = ["RoundWeights"]
