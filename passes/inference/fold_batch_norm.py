"""FoldBatchNorm: folds an inference-mode batch norm into the layer before it."""

from __future__ import annotations

from collections.abc import Iterator

import einops
import torch
from torch import fx, nn

from svitc.errors import InternalError
from svitc.ir import ops
from svitc.ir.batch_norm import scale_and_shift, set_weights
from svitc.ir.graph import describe
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage


class FoldBatchNorm(Pass):
    """Fold an inference-mode batch norm into the convolution or linear layer before it.

    before   x -> conv -> batch_norm -> reader              linear -> rearrange -> batch_norm -> reader
    after    x -> conv' -> reader                           linear' -> rearrange -> reader

        w' = w * gamma / sqrt(var + eps)
        b' = (b - mean) * gamma / sqrt(var + eps) + beta        computed in float64, rounded once

    Refuses
      1. a batch norm whose input is not a convolution or linear layer, or views of its output;
      2. a layer or view with another reader, or a layer that is called more than once;
      3. a batch norm over another axis than the layer's channels, such as tokens.
    """

    ensures = Stage.INFERENCE

    def match(self, program: Program, node: fx.Node) -> bool:
        return ops.is_batch_norm(program.module_of(node))

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        source = _behind_views(node)
        layer = program.module_of(source)
        if not ops.is_projection(layer):
            return "its input is not a convolution or linear layer"
        shared = next((x for x in _chain(node) if len(x.users) > 1), None)
        if shared is not None:
            return f"{describe(shared)} has another reader"
        if not program.called_once(source):
            return f"{source.target} is called more than once"
        if program.type_of(source)[-1 if isinstance(layer, nn.Linear) else 1] != program.type_of(node)[1]:
            return f"it is over another axis than the channels of {source.target}"
        return None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        source = _behind_views(node)
        layer = program.module_of(source)
        if not isinstance(layer, (*ops.CONVOLUTIONS, nn.Linear)):
            raise InternalError(f"{self.name}: {source.target} cannot take {node.target}")
        set_weights(layer, *folded(layer, program.module_of(node)))
        node.replace_all_uses_with(node.all_input_nodes[0])
        program.graph.erase_node(node)


def folded(layer: nn.Module, norm: nn.Module | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias, in float64, of a layer with a batch norm folded in."""
    assert isinstance(layer, (*ops.CONVOLUTIONS, nn.Linear))
    scale, shift = scale_and_shift(norm)
    with torch.no_grad():
        weight = layer.weight.to(torch.float64, copy=True)
        weight *= scale.reshape(-1, *[1] * (layer.weight.ndim - 1))  # in place, as weights may be most of the memory
        return weight, shift if layer.bias is None else layer.bias.double() * scale + shift


def folds(program: Program) -> Iterator[tuple[str, str]]:
    """Return the layers that take in a batch norm, each with the batch norm."""
    fold = FoldBatchNorm()
    for node in program.graph.nodes:
        if fold.match(program, node) and fold.why_not(program, node) is None:
            yield str(_behind_views(node).target), str(node.target)


def _chain(node: fx.Node) -> list[fx.Node]:
    """Return the views before a node, the last one first, and the node that they are of."""
    chain = [node.all_input_nodes[0]]
    while chain[-1].target is einops.rearrange:
        chain.append(chain[-1].all_input_nodes[0])
    return chain


def _behind_views(node: fx.Node) -> fx.Node:
    """Return the node whose output a node reads, perhaps through views."""
    return _chain(node)[-1]
