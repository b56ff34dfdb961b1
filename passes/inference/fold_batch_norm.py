"""FoldBatchNorm: folds an inference-mode batch norm into the layer before it."""

from __future__ import annotations

import torch
from torch import fx, nn

from svitc.errors import InternalError
from svitc.ir import ops
from svitc.ir.batch_norm import scale_and_shift, set_weights
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage


class FoldBatchNorm(Pass):
    """Fold an inference-mode batch norm into the convolution or linear layer before it.

    before   x -> conv -> batch_norm -> reader
    after    x -> conv' -> reader

        w' = w * gamma / sqrt(var + eps)
        b' = (b - mean) * gamma / sqrt(var + eps) + beta        computed in float64, rounded once

    Refuses
      1. a batch norm whose input is not a convolution or linear layer;
      2. a layer with another reader, or one that is called more than once.
    """

    ensures = Stage.INFERENCE

    def match(self, program: Program, node: fx.Node) -> bool:
        return ops.is_batch_norm(program.module_of(node))

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        source = node.all_input_nodes[0]
        if not ops.is_projection(program.module_of(source)):
            return "its input is not a convolution or linear layer"
        if len(source.users) > 1:
            return f"{source.target} has another reader"
        if not program.called_once(source):
            return f"{source.target} is called more than once"
        return None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        layer = program.module_of(source)
        if not isinstance(layer, (*ops.CONVOLUTIONS, nn.Linear)):
            raise InternalError(f"{self.name}: {source.target} cannot take {node.target}")
        scale, shift = scale_and_shift(program.module_of(node))
        with torch.no_grad():
            weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
            bias = shift if layer.bias is None else layer.bias.double() * scale + shift
            set_weights(layer, weight, bias)
        node.replace_all_uses_with(source)
        program.graph.erase_node(node)
