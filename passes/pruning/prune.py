"""Prune: substitute the elements that a plan keeps, and slice every parameter along the axes its type names."""

from __future__ import annotations

import einops
import numpy as np
from torch import fx, nn

from svitc.ir.channel_slicing import Chosen, selection, slice_module, slice_tensor
from svitc.ir.einops_pattern import bind_letters
from svitc.ir.graph import attribute_of
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage
from svitc.planning.plan import Plan


class Prune(Pass):
    """Remove the channels that a plan does not keep, everywhere at once.

    before   every parameter at its full width
    after    each parameter dimension holds the kept elements of its groups; the sizes that rearranges
             give (numbers of heads) follow

    Refuses nothing here: Plan.validate has refused frozen groups, uneven heads and unknown names before.
    """

    requires = (Stage.CAPTURED, Stage.PRUNED)
    ensures = Stage.PRUNED

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def apply(self, program: Program) -> PassResult:
        result = PassResult(self.name)
        keep = self.plan.validate(program)
        result.changed += [name for name, mask in keep.items() if not mask.all()]
        chosen, sizes = selection(program, keep)
        self._slice(program, chosen)
        self._resize_views(program, sizes)
        return result

    def _slice(self, program: Program, chosen: Chosen) -> None:
        done: set[str] = set()
        for node in program.graph.nodes:
            params = program.parameters_of(node)
            if not params or str(node.target) in done:
                continue
            done.add(str(node.target))
            index = {name: [chosen(dim) for dim in dims] for name, dims in params.items()}
            if node.op == "get_attr":
                owner, _, name = str(node.target).rpartition(".")
                old = attribute_of(program.module, str(node.target))
                new = slice_tensor(old.detach(), index[""]).clone()
                parent = program.module.get_submodule(owner)
                setattr(parent, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
            else:
                module = program.module_of(node)
                assert module is not None
                slice_module(module, index)

    def _resize_views(self, program: Program, sizes: dict[int, int]) -> None:
        for node in program.graph.nodes:
            if node.target not in (einops.rearrange, einops.repeat) or not node.kwargs:
                continue
            source: fx.Node = node.all_input_nodes[0]
            given = {k: v for k, v in node.kwargs.items() if k in str(node.args[1]).split("->")[0]}
            bound = bind_letters(program.type_of(source), str(node.args[1]), given)
            node.kwargs = {
                name: int(np.prod([sizes.get(id(axis), axis.size) for axis in bound[name]])) if name in bound else value
                for name, value in node.kwargs.items()
            }
