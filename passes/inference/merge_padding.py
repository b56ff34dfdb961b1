"""MergePadding: turns zeros around a value into padding of the convolutions that read it."""

from __future__ import annotations

from torch import fx, nn

from svitc.ir import ops
from svitc.ir.graph import describe
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage


class MergePadding(Pass):
    """Replace zero padding with the padding of the convolutions that read it.

    before   x -> zero_pad -> conv
    after    x -> conv with more padding

    Refuses
      1. a reader that is not a two-dimensional convolution: a batch norm shifts the zeros, and pooling pads
         with something else;
      2. zeros on one side only, with which a convolution cannot pad;
      3. a convolution that is called more than once.
    """

    requires = (Stage.INFERENCE, Stage.EXPORTABLE)

    def match(self, program: Program, node: fx.Node) -> bool:
        return isinstance(program.module_of(node), ops.PADS)

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        left, right, top, bottom = program.module_of(node).padding  # type: ignore[union-attr, misc]
        if left != right or top != bottom:
            return "it pads one side more than the other"
        for user in node.users:
            if not isinstance(program.module_of(user), nn.Conv2d):
                return f"{describe(user)} reads it"
            if not program.called_once(user):
                return f"{user.target} is called more than once"
        return None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        left, _, top, _ = program.module_of(node).padding  # type: ignore[union-attr, misc]
        for user in node.users:
            layer = program.module_of(user)
            assert isinstance(layer, nn.Conv2d)
            layer.padding = (int(layer.padding[0]) + top, int(layer.padding[1]) + left)
        node.replace_all_uses_with(node.all_input_nodes[0])
        program.graph.erase_node(node)
