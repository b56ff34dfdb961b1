"""MergeViews: a chain of views is one view, and a view that changes nothing is none."""

from __future__ import annotations

import einops
from torch import fx

from svitc.pass_base import Pass
from svitc.program import Program
from svitc.views import retarget


class MergeViews(Pass):
    """Compose each rearrange with the rearranges before it; drop those whose types are equal.

    before   x -> rearrange -> rearrange -> reader
    after    x -> rearrange -> reader          or   x -> reader, where the axes come back as they were

    Refuses nothing: axis types say exactly what a view does, so that any two compose.
    """

    def match(self, program: Program, node: fx.Node) -> bool:
        if node.target is not einops.rearrange:
            return False
        source = node.all_input_nodes[0]
        return source.target is einops.rearrange or program.type_of(source) == program.type_of(node)

    def rewrite(self, program: Program, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        while source.target is einops.rearrange:
            source = source.all_input_nodes[0]
        if program.type_of(source) == program.type_of(node):
            node.replace_all_uses_with(source)
            program.graph.erase_node(node)
        else:
            retarget(program, node, source)
