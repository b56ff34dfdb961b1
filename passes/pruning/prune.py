"""Prune: keeps the channels of a plan and slices every parameter along the axes that its type names."""

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
    """Remove the channels that a plan does not keep, from every parameter at once.

    before   every parameter at its full width
    after    each parameter dimension holds the kept elements of its groups; the sizes in rearranges (numbers of
             heads) follow

    Refuses nothing: Plan.validate has already rejected frozen groups, uneven heads and unknown names.

    Args:
        plan: the channels to keep.
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
        """Slice every parameter once; ``chosen`` gives the kept indices of a dimension."""
        sliced: set[str] = set()
        for node in program.graph.nodes:
            params = program.parameters_of(node)
            if not params or str(node.target) in sliced:
                continue
            sliced.add(str(node.target))
            index = {name: [chosen(dim) for dim in dims] for name, dims in params.items()}
            if node.op == "get_attr":
                owner, _, name = str(node.target).rpartition(".")
                tensor = attribute_of(program.module, str(node.target))
                smaller = slice_tensor(tensor.detach(), index[""]).clone()
                parent = program.module.get_submodule(owner)
                is_parameter = isinstance(tensor, nn.Parameter)
                setattr(parent, name, nn.Parameter(smaller, tensor.requires_grad) if is_parameter else smaller)
            else:
                module = program.module_of(node)
                assert module is not None
                slice_module(module, index)

    def _resize_views(self, program: Program, sizes: dict[int, int]) -> None:
        """Set the sizes in views to those of the remaining elements; ``sizes`` by id of the axis."""
        for node in program.graph.nodes:
            if node.target not in (einops.rearrange, einops.repeat) or not node.kwargs:
                continue
            source: fx.Node = node.all_input_nodes[0]
            input_sizes = {k: v for k, v in node.kwargs.items() if k in str(node.args[1]).split("->")[0]}
            letters = bind_letters(program.type_of(source), str(node.args[1]), input_sizes)
            lengths = {
                letter: int(np.prod([sizes.get(id(a), a.size) for a in axes])) for letter, axes in letters.items()
            }
            node.kwargs = {name: lengths.get(name, value) for name, value in node.kwargs.items()}
