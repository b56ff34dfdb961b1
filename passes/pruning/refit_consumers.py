"""Refit readers: the weights behind a cut, re-solved from moments of the original alone, without running anything."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx, nn

from svitc.analysis.calibration import Calibration
from svitc.ir import ops
from svitc.ir.channel_slicing import selection
from svitc.ir.graph import attribute_of
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage
from svitc.planning.plan import Plan

RIDGE = 1e-3  # of the mean variance: what holds weights that the calibration images say nothing about


class RefitConsumers(Pass):
    """Let each layer that lost inputs make up for them with those that are left.

    before   W_K S_K                                        W, S cut to the kept inputs K
    after    (W_K + W_P C_PK C_KK^-1) S_K                   C = covariance of S, P what was removed

    This is the least-squares answer to W S, with a free mean. A batch norm behind gets the new output's mean and
    variance, a bias the new mean. The moments are those of inputs that fire as in the original: after one cut they
    do, after several in a row the errors of earlier layers are left to ReestimateBatchNorm. (Re-solving each layer on
    what the cut network really gives it was tried, and was worse: least squares fades what has become noisy.)

    Refuses
      1. a layer for which no moments were taken: a grouped convolution, or one too wide.
    """

    requires = (Stage.PRUNED, Stage.PRUNED)

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
            if inputs is None:
                continue
            if str(node.target) not in self.calibration.moments:
                result.refused[str(node.target)] = "no moments of its inputs"
                continue
            self._solve(program, node, module, outputs, inputs)
            result.changed.append(str(node.target))
        return result

    def _solve(
        self, program: Program, node: fx.Node, projection: nn.Conv2d, outputs: np.ndarray | None, inputs: np.ndarray
    ) -> None:
        moments = self.calibration.moments[str(node.target)]
        before = attribute_of(self.original.module, f"{node.target}.weight").detach()
        kernel = before[0, 0].numel()
        full = before.flatten(1).double() if outputs is None else before[torch.from_numpy(outputs)].flatten(1).double()
        keep = torch.from_numpy((inputs[:, None] * kernel + np.arange(kernel)).reshape(-1))
        gone = torch.ones(full.shape[1], dtype=torch.bool)
        gone[keep] = False
        covariance, mean = moments.covariance, moments.mean
        inner = covariance[keep][:, keep].clone()
        inner.diagonal().add_(RIDGE * inner.diagonal().mean().clamp_min(1e-12))
        step = torch.linalg.solve(inner, covariance[keep][:, gone] @ full[:, gone].T).T
        weight = full[:, keep] + step
        shift = weight @ mean[keep] - full @ mean
        now, then = (((w @ c) * w).sum(1) for w, c in ((weight, covariance[keep][:, keep]), (full, covariance)))
        norm = next(iter(node.users)) if len(node.users) == 1 else None
        with torch.no_grad():
            projection.weight.copy_(weight.reshape(projection.weight.shape))
            if norm is not None and ops.is_batch_norm(behind := program.module_of(norm)):
                assert behind.running_mean is not None and behind.running_var is not None
                behind.running_mean.copy_(self._of(norm, "running_mean", outputs) + shift)
                behind.running_var.copy_(
                    self._of(norm, "running_var", outputs) * (now / then.clamp_min(1e-12)).clamp(1e-3, 1e3)
                )
            elif projection.bias is not None:
                projection.bias.copy_(self._of(node, "bias", outputs) - shift)

    def _of(self, node: fx.Node, name: str, outputs: np.ndarray | None) -> torch.Tensor:
        """The original's parameter, cut: a second run starts from it as the first did."""
        whole = attribute_of(self.original.module, f"{node.target}.{name}").detach()
        return whole if outputs is None else whole[torch.from_numpy(outputs)]
