"""FoldBatchNormIntoConsumers: folds a batch norm that no layer before it can take into the layers that read it."""

from __future__ import annotations

import torch
from torch import fx, nn

from svitc.ir import ops
from svitc.ir.batch_norm import scale_and_shift, set_weights
from svitc.ir.graph import describe
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage


class FoldBatchNormIntoConsumers(Pass):
    """Fold an inference-mode batch norm into the convolutions and linear layers that read it.

    before   x -> zero_pad -> batch_norm -> conv
    after    x -> zero_pad -> conv'                              such as the border of a RepConv

        a = gamma / sqrt(var + eps)    c = beta - mean * a       for each input channel
        w' = w * a    b' = b + sum over w * c                    computed in float64, rounded once

    Refuses
      1. a reader that is not a convolution or linear layer;
      2. a layer that is called more than once;
      3. a convolution that pads with zeros: they would be shifted, too.
    """

    name = "FoldBatchNormAhead"  # the old name of this pass, which reports keep
    requires = (Stage.INFERENCE, Stage.EXPORTABLE)

    def match(self, program: Program, node: fx.Node) -> bool:
        return ops.is_batch_norm(program.module_of(node))

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        for user in node.users:
            layer = program.module_of(user)
            if not ops.is_projection(layer) or len(program.type_of(node)) < 2:
                return f"{describe(user)} reads it"
            if isinstance(layer, nn.Linear) and len(program.type_of(node)) != 2:
                return f"{user.target} reads another dimension of it"
            if not program.called_once(user):
                return f"{user.target} is called more than once"
            if any(getattr(layer, "padding", ())):
                return f"{user.target} pads it with zeros"
        return None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        scale, shift = scale_and_shift(program.module_of(node))
        for user in node.users:
            _fold(program.module_of(user), scale, shift)
        node.replace_all_uses_with(node.all_input_nodes[0])
        program.graph.erase_node(node)


def can_fold_into_consumers(program: Program, node: fx.Node) -> bool:
    """Return whether all readers of a batch norm can take it in."""
    return FoldBatchNormIntoConsumers().why_not(program, node) is None


def _fold(layer: nn.Module | None, scale: torch.Tensor, shift: torch.Tensor) -> None:
    """Change a layer so that input channel i is read as ``x * scale[i] + shift[i]``."""
    assert isinstance(layer, (*ops.CONVOLUTIONS, nn.Linear))
    with torch.no_grad():
        weight, groups = layer.weight.double(), getattr(layer, "groups", 1)
        rows = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        scales, shifts = (vector.reshape(groups, 1, -1, 1) for vector in (scale, shift))
        bias = (rows * shifts).sum((2, 3)).reshape(-1)
        if layer.bias is not None:
            bias = bias + layer.bias.double()
        set_weights(layer, (rows * scales).reshape(weight.shape), bias)
