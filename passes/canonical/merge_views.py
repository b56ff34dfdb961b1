"""MergeViews: composes a chain of views into one, and removes views that change nothing."""

from __future__ import annotations

import einops
from torch import fx

from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program
from svitc.ir.views import composed, retarget


class MergeViews(Pass):
    """Compose each rearrange with the rearranges before it; drop those with equal input and output types.

    before   x -> rearrange -> rearrange -> reader
    after    x -> rearrange -> reader          or   x -> reader, where the axes end up as they were

    Refuses nothing: axis types describe a view completely, so any two compose.
    """

    def match(self, program: Program, node: fx.Node) -> bool:
        if node.target is not einops.rearrange:
            return False
        source, target = composed(program, [node])
        return source == target or node.all_input_nodes[0].target is einops.rearrange

    def rewrite(self, program: Program, node: fx.Node) -> None:
        chain = [node]
        while chain[0].all_input_nodes[0].target is einops.rearrange:
            chain.insert(0, chain[0].all_input_nodes[0])
        x = chain[0].all_input_nodes[0]
        source, target = composed(program, chain)
        if source == target:
            node.replace_all_uses_with(x)
            program.graph.erase_node(node)
        else:
            retarget(node, x, source, target)
