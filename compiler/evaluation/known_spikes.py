"""Known spikes: the neurons of a pruned program that fire as in the original, but for the channels that they lost.

A neuron fires as in the original where nothing in front of it differs. The neurons of the pruned channels do so too:
their layer has lost outputs, but computes each that is left as before, and only its readers see a difference.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from svitc.ir import axes, ops
from svitc.ir.axes import Dims
from svitc.ir.channel_groups import ChannelGroup
from svitc.ir.channel_slicing import Chosen, selection, slice_tensor
from svitc.ir.program import Program
from svitc.planning.plan import Plan


@dataclass(frozen=True)
class Part:
    """The part of an original value that a pruned program computes.

    Attributes:
        dims: type of the original value.
        group: the group that lost channels; None where the value is complete.
        keep: the channels that are left, ``[heads, channels per head]``.
    """

    dims: Dims
    group: ChannelGroup | None = None
    keep: np.ndarray | None = None

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return this part of the original value, as it is stored: with time and batch in one dimension.

        Raises:
            ValueError: the value is stored in another form.
        """
        if self.group is None or self.keep is None:
            return values
        if values.shape[1:] != axes.shape(self.dims[len(self.dims) - values.ndim + 1 :]):
            raise ValueError(f"a value of shape {values.shape} is stored in another form than its type {self.dims}")
        at = next(i for i, dim in enumerate(self.dims) if self.group.axis in dim)
        head_axis = self.group.head_axis
        first = at if head_axis is None or head_axis in self.dims[at] else at - 1
        if first < at and self.dims[first] != (head_axis,):
            raise ValueError("the heads of a value are stored apart from their channels")
        merged = tuple(axis for dim in self.dims[first : at + 1] for axis in dim)
        kept = np.flatnonzero(self.group.mask(merged, self.keep))
        start, stop = first - len(self.dims) + values.ndim, at + 1 - len(self.dims) + values.ndim
        before, after = values.shape[:start], values.shape[stop:]
        heads = () if first == at else (int(self.keep.any(axis=1).sum()),)
        return values.reshape(*before, -1, *after).take(kept, axis=start).reshape(*before, *heads, -1, *after)

    def fits(self, stored: tuple[int, ...], wanted: tuple[int, ...] | None) -> bool:
        """Return whether this part of a stored value has the form in which a pruned file reads it.

        Args:
            stored: shape of the original value, with time and batch in one dimension.
            wanted: shape of the value in the file, whatever its first dimension is; None where that is not known.
        """
        if self.group is None:
            return True
        try:
            left = self.of(np.empty((1, *stored[1:]), dtype=np.uint8))
        except ValueError:
            return False
        return wanted is not None and left.shape[1:] == wanted[1:]


class KnownSpikes:
    """Finds the neurons of a pruned program whose spikes are those of the original, or a part of them.

    Args:
        program: the original; must not change.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._state = {name: value.clone() for name, value in program.module.state_dict().items()}
        self._nodes = {node.name: node for node in program.graph.nodes}

    def __call__(self, candidate: Program, plan: Plan | None = None) -> dict[str, Part]:
        """Return the part that is left of each of these neurons' spikes, by the path of its layer.

        Args:
            candidate: a copy of the original in which weights may have changed.
            plan: the channels that were kept of it; where it is None, only complete values are found.
        """
        keep = (plan or Plan({})).validate(self.program)
        chosen, _ = selection(self.program, keep)
        pruned = [group for group in self.program.groups if not keep[group.name].all()]
        state = candidate.module.state_dict()
        known: dict[str, Part] = {}
        differs: set[fx.Node] = set()
        for node in candidate.graph.nodes:
            original = self._nodes[node.name]
            if any(source in differs for source in node.all_input_nodes) or not (
                self._same_literals(node, original, chosen)
                and self._keeps_channels_apart(original, chosen)
                and self._same_weights(original, state, chosen)
            ):
                differs.add(node)
            elif ops.is_neuron(self.program.module_of(original)):
                part = _part(self.program.type_of(original), pruned, keep)
                if part is not None:
                    known[str(node.target)] = part
        return known

    def _shrinks(self, original: fx.Node, chosen: Chosen) -> bool:
        """Return whether a value has lost channels."""
        return any(chosen(dim) is not None for dim in self.program.type_of(original))

    def _same_literals(self, node: fx.Node, original: fx.Node, chosen: Chosen) -> bool:
        """Return whether two nodes have the same literals; the sizes in a view of pruned channels may differ."""
        resized = node.target in ops.VIEWS and self._shrinks(original, chosen)
        return (resized or node.kwargs == original.kwargs) and [
            argument for argument in node.args if not isinstance(argument, fx.Node)
        ] == [argument for argument in original.args if not isinstance(argument, fx.Node)]

    def _same_weights(self, original: fx.Node, state: Mapping[str, torch.Tensor], chosen: Chosen) -> bool:
        """Return whether the weights that are left of a node are the original's."""
        types = self.program.parameters_of(original)
        if original.op == "get_attr":
            names = {str(original.target): ""}
        elif original.op == "call_module":
            prefix = f"{original.target}."
            names = {name: name.removeprefix(prefix) for name in state if name.startswith(prefix)}
        else:
            return True
        for path, name in names.items():
            value = self._state[path]
            expected = slice_tensor(value, [chosen(dim) for dim in types[name]]) if name in types else value
            if state[path].shape != expected.shape or not torch.equal(state[path], expected):
                return False
        return True

    def _keeps_channels_apart(self, original: fx.Node, chosen: Chosen) -> bool:
        """Return whether what is left of a node's inputs is all that its remaining outputs depend on."""
        if not any(self._shrinks(source, chosen) for source in original.all_input_nodes):
            return True
        types = [self.program.type_of(source) for source in original.all_input_nodes]
        if original.op == "call_module":
            module = self.program.module_of(original)
            if isinstance(module, ops.CONVOLUTIONS):
                return module.groups == module.in_channels == module.out_channels
            return ops.is_neuron(module) or isinstance(module, (*ops.BATCH_NORMS, *ops.POOLS, *ops.PADS))
        if original.target in (torch.matmul, operator.matmul):
            left, right = types[0], types[-1]
            return len(right) > 1 and chosen(left[-1]) is None and chosen(right[-2]) is None
        return original.target in (*ops.ELEMENTWISE, *ops.VIEWS)


def _part(dims: Dims, pruned: list[ChannelGroup], keep: Mapping[str, np.ndarray]) -> Part | None:
    """Return the part of a value that is left; None where several groups, or only its heads, have shrunk."""
    there = {id(axis) for dim in dims for axis in dim}
    groups = [group for group in pruned if id(group.axis) in there]
    if not groups:
        lost_heads = {id(group.head_axis) for group in pruned if not keep[group.name].any(axis=1).all()}
        return None if lost_heads & there else Part(dims)
    return Part(dims, groups[0], keep[groups[0].name]) if len(groups) == 1 else None
