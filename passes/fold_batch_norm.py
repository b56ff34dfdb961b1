"""FoldBatchNorm: an inference-mode batch norm goes into the layer that feeds it."""

from __future__ import annotations

import torch
from torch import fx, nn

from svitc import ops
from svitc.errors import InternalError
from svitc.pass_base import Pass
from svitc.program import Program, Stage


def called_once(program: Program, node: fx.Node) -> bool:
    """Whether no other node calls a node's layer, so that its weights may be changed for this one."""
    return sum(each.target == node.target and each.op == node.op for each in program.graph.nodes) == 1


class FoldBatchNorm(Pass):
    """Fold an inference-mode batch norm into the convolution or linear layer that feeds it.

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
        if not called_once(program, source):
            return f"{source.target} is called more than once"
        return None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        layer, norm = program.module_of(source), program.module_of(node)
        if not isinstance(layer, (*ops.CONVOLUTIONS, nn.Linear)) or not isinstance(norm, ops.BATCH_NORMS):
            raise InternalError(f"{self.name}: {source.target} cannot take {node.target}")
        assert norm.running_mean is not None and norm.running_var is not None
        with torch.no_grad():
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            if norm.weight is not None:
                scale = scale * norm.weight.double()
            old = 0.0 if layer.bias is None else layer.bias.double()
            shift = (old - norm.running_mean.double()) * scale
            if norm.bias is not None:
                shift = shift + norm.bias.double()
            weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
            dtype = layer.weight.dtype
            layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
            layer.bias = nn.Parameter(shift.to(dtype), requires_grad=False)
        node.replace_all_uses_with(source)
        program.graph.erase_node(node)
