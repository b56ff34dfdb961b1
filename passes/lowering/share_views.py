"""ShareViews: computes equal views of the same value once."""

from __future__ import annotations

import einops
from torch import fx

from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program


class ShareViews(Pass):
    """Let readers of equal views of one value share the first of them.

    before   x -> rearrange -> conv_q;  x -> rearrange -> conv_k
    after    x -> rearrange -> conv_q, conv_k

    Refuses nothing.
    """

    def match(self, program: Program, node: fx.Node) -> bool:
        return node.target is einops.rearrange and _first(node) is not node

    def rewrite(self, program: Program, node: fx.Node) -> None:
        node.replace_all_uses_with(_first(node))
        program.graph.erase_node(node)


def _first(node: fx.Node) -> fx.Node:
    """Return the first node, in the order of use, that applies the same view to the same value."""
    return next(
        other
        for other in node.all_input_nodes[0].users
        if (other.target, other.args, other.kwargs) == (node.target, node.args, node.kwargs)
    )
