"""MergeViews: composes a chain of views into one, and removes views that change nothing."""

from __future__ import annotations

import einops
from torch import fx

from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program
from svitc.ir.views import composed, is_one_pattern, retarget


class MergeViews(Pass):
    """Compose each rearrange with the rearranges before it; drop those with equal input and output types.

    before   x -> rearrange -> rearrange -> reader
    after    x -> rearrange -> reader          or   x -> reader, where the axes end up as they were

    A pattern cannot drop an axis of size 1 that shares a dimension with others; such views stay apart.
    """

    def match(self, program: Program, node: fx.Node) -> bool:
        if node.target is not einops.rearrange:
            return False
        chain = self._chain(program, node)
        source, target = composed(program, chain)
        return source == target or len(chain) > 1

    def rewrite(self, program: Program, node: fx.Node) -> None:
        chain = self._chain(program, node)
        x = chain[0].all_input_nodes[0]
        source, target = composed(program, chain)
        if source == target:
            node.replace_all_uses_with(x)
            program.graph.erase_node(node)
        else:
            retarget(node, x, source, target)

    @staticmethod
    def _chain(program: Program, node: fx.Node) -> list[fx.Node]:
        """Return the longest chain of rearranges that ends in ``node`` and is one view."""
        chain = longest = [node]
        while chain[0].all_input_nodes[0].target is einops.rearrange:
            chain = [chain[0].all_input_nodes[0], *chain]
            if is_one_pattern(*composed(program, chain)):
                longest = chain
        return longest
