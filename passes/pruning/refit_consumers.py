"""RefitConsumers: solves the weights of layers that lost inputs again, from moments of the original alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx, nn

from svitc.analysis.calibration import Calibration
from svitc.ir import low_rank, ops
from svitc.ir.channel_slicing import selection
from svitc.ir.graph import attribute_of
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage
from svitc.planning.plan import Plan

RIDGE = 1e-3  # relative to the mean variance: keeps weights that the calibration images do not determine


class RefitConsumers(Pass):
    """Let each layer that lost inputs compensate for them with those that are left.

    before   W_K S_K                                        W, S restricted to the kept inputs K
    after    (W_K + W_P C_PK C_KK^-1) S_K                   C = covariance of S, P what was removed

    This is the least-squares approximation of W S, with a free mean, mostly of its average over time, since neurons add
    up what they get (``Calibration.smoothed``). A batch norm after the layer gets the mean and variance of the new
    output, a bias the new mean. The moments are those of inputs that fire as in the original. This
    holds after one pruned layer; after several in a row, the errors of earlier layers are left to ReestimateBatchNorm.
    (Solving each layer on its real inputs in the pruned network was tried and was worse: least squares shrinks the
    weights of inputs that have become noisy.) Where the plan gives a layer a rank, it gets the weights of that rank
    whose outputs, times the factors of the batch norm, differ least.

    Refuses
      1. a layer for which no moments were collected: a grouped convolution, or one too wide.

    Args:
        original: the program before pruning.
        plan: the channels that were kept.
        calibration: statistics of the original.
    """

    requires = (Stage.PRUNED, Stage.PRUNED)
    values_only = True

    def __init__(self, original: Program, plan: Plan, calibration: Calibration) -> None:
        self.original, self.plan, self.calibration = original, plan, calibration

    def apply(self, program: Program) -> PassResult:
        result = PassResult(self.name)
        chosen, _ = selection(self.original, self.plan.validate(self.original))
        original = {node.name: node for node in self.original.graph.nodes}
        for node in program.graph.nodes:
            module = program.module_of(node)
            if not ops.is_projection(module):
                continue
            outputs, inputs = (chosen(dim) for dim in self.original.parameters_of(original[node.name])["weight"][:2])
            rank = self.plan.ranks.get(str(node.target))
            if inputs is None and rank is None:
                continue
            if str(node.target) not in self.calibration.moments:
                result.refused[str(node.target)] = "no moments of its inputs"
                continue
            inputs = np.arange(module.weight.shape[1]) if inputs is None else inputs
            self._solve(program, node, module, outputs, inputs)
            result.changed.append(str(node.target))
        return result

    def _solve(
        self, program: Program, node: fx.Node, projection: nn.Conv2d, outputs: np.ndarray | None, inputs: np.ndarray
    ) -> None:
        """Set the weights of one layer, and its bias or the batch norm after it.

        Args:
            program: the pruned program.
            node: the layer.
            projection: its module.
            outputs: indices of the kept outputs; None for all.
            inputs: indices of the kept inputs.
        """
        moments = self.calibration.moments[str(node.target)]
        smoothed = self.calibration.smoothed[str(node.target)].covariance
        kernel = projection.weight[0, 0].numel()
        full = self._original(node, "weight", outputs).flatten(1).double()
        keep = torch.from_numpy((inputs[:, None] * kernel + np.arange(kernel)).reshape(-1))
        removed = torch.ones(full.shape[1], dtype=torch.bool)
        removed[keep] = False
        covariance, mean = moments.covariance, moments.mean
        kept_covariance = smoothed[keep][:, keep].clone()
        kept_covariance.diagonal().add_(RIDGE * kept_covariance.diagonal().mean().clamp_min(1e-12))
        correction = torch.linalg.solve(kept_covariance, smoothed[keep][:, removed] @ full[:, removed].T).T
        weight = full[:, keep] + correction
        norm = next(iter(node.users)) if len(node.users) == 1 else None
        rank = self.plan.ranks.get(str(node.target))
        if rank is not None and low_rank.saves(rank, *weight.shape):
            weight = low_rank.nearest(weight, rank, smoothed[keep][:, keep], self._gain(norm, outputs))
        shift = weight @ mean[keep] - full @ mean
        new_variance, old_variance = (
            ((w @ c) * w).sum(1) for w, c in ((weight, covariance[keep][:, keep]), (full, covariance))
        )
        with torch.no_grad():
            projection.weight.copy_(weight.reshape(projection.weight.shape))
            if norm is not None and ops.is_batch_norm(batch_norm := program.module_of(norm)):
                assert batch_norm.running_mean is not None and batch_norm.running_var is not None
                batch_norm.running_mean.copy_(self._original(norm, "running_mean", outputs) + shift)
                batch_norm.running_var.copy_(
                    self._original(norm, "running_var", outputs)
                    * (new_variance / old_variance.clamp_min(1e-12)).clamp(1e-3, 1e3)
                )
            elif projection.bias is not None:
                projection.bias.copy_(self._original(node, "bias", outputs) - shift)

    def _gain(self, norm: fx.Node | None, outputs: np.ndarray | None) -> torch.Tensor | None:
        """Return the factor by which the batch norm behind a layer multiplies each output; None without one."""
        module = None if norm is None else self.original.module_of(norm)
        if norm is None or not ops.is_batch_norm(module) or not module.affine:
            return None
        weight, variance = (self._original(norm, name, outputs).double() for name in ("weight", "running_var"))
        gain = weight.abs() / (variance + module.eps).sqrt()
        return gain.clamp_min(1e-3 * float(gain.max().clamp_min(1e-12)))

    def _original(self, node: fx.Node, name: str, outputs: np.ndarray | None) -> torch.Tensor:
        """Return the kept part of an original parameter, so that a second run has the same starting point."""
        parameter = attribute_of(self.original.module, f"{node.target}.{name}").detach()
        return parameter if outputs is None else parameter[torch.from_numpy(outputs)]
