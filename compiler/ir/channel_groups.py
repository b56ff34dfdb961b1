"""Channel groups: parameter dimensions that must keep the same channels when the model is pruned.

A group is one leaf channel axis after type inference. If the axis lies inside attention heads, ``(h d)``, the group
has ``h * d`` elements: each head can keep different channels, but the same number of them, and a head that is
removed is removed from every group that shares the head axis.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from torch import fx

from svitc.ir import ops
from svitc.ir.axes import Axis, Dim, Kind
from svitc.ir.graph import module_of, parameters_of, type_of


@dataclass(frozen=True)
class Member:
    """Parameter dimension that belongs to a channel group.

    Attributes:
        module: path of the layer, or of the bare parameter (one that belongs to no canonical layer).
        param: ``weight``, ``running_mean``, …; empty for a bare parameter.
        dim: index of the dimension.
        produces: whether this parameter produces the group's channels; otherwise it reads them or passes them on.
    """

    module: str
    param: str
    dim: int
    produces: bool


@dataclass
class ChannelGroup:
    """Channels that can only be removed from all members of the group at once.

    Attributes:
        name: path of the first layer that produces the channels.
        axis: the leaf axis; within attention heads, the axis of the channels in a head.
        head_axis: the axis of heads around it, or None.
        shared: whether every head must keep the same channels.
        members: parameter dimensions, in graph order.
        frozen: reason why nothing can be removed, or None.
        whole_heads: reason why only complete heads can be removed, or None.
    """

    name: str
    axis: Axis
    head_axis: Axis | None = None
    shared: bool = False
    members: list[Member] = field(default_factory=list)
    frozen: str | None = None
    whole_heads: str | None = None

    @property
    def heads(self) -> int:
        """Number of attention heads, 1 where there are none."""
        return self.head_axis.size if self.head_axis is not None else 1

    @property
    def size(self) -> int:
        """Number of channels, over all heads."""
        return self.heads * self.axis.size

    @property
    def producers(self) -> list[str]:
        """Paths of the layers that produce these channels, without duplicates."""
        return list(dict.fromkeys(m.module for m in self.members if m.produces))

    def named(self, glob: str) -> bool:
        """Return whether the user's glob matches the name of this group."""
        return _matches(self.name, glob)

    def touches(self, glob: str) -> bool:
        """Return whether the user's glob matches a layer whose shape depends on this group."""
        return self.named(glob) or any(_matches(member.module, glob) for member in self.members)

    def mask(self, dim: Dim, keep: np.ndarray) -> np.ndarray:
        """Return which elements of a parameter dimension remain after pruning this group.

        Args:
            dim: type of the dimension. Axes that do not belong to this group are kept completely.
            keep: boolean mask of the group, of shape ``[heads, channels per head]``.

        Returns:
            a boolean mask of shape ``[size of dim]``.
        """
        shape = [1] * len(dim)
        order = []
        for i, axis in enumerate(dim):
            if axis is self.axis or axis is self.head_axis:
                shape[i] = axis.size
                order.append(axis)
        values: np.ndarray = keep
        if self.head_axis not in order:
            values = np.asarray(keep.any(axis=0)) if self.axis in order else keep
        elif self.axis not in order:
            values = np.asarray(keep.any(axis=1))
        elif order[0] is self.axis:
            values = keep.T
        return np.broadcast_to(values.reshape(shape), [axis.size for axis in dim]).reshape(-1)


def _matches(name: str, glob: str) -> bool:
    return fnmatchcase(name, glob) or fnmatchcase(name, glob + ".*")


def channel_groups(module: fx.GraphModule) -> list[ChannelGroup]:
    """Return the channel groups of a typed graph, in graph order. The run time is linear in the size of the graph."""
    # all axes are keyed by id
    contexts: dict[int, set[int]] = defaultdict(set)  # leaf -> head axes around it in parameters; 0 for no heads
    seen: dict[int, Axis] = {}
    alone: set[int] = set()  # leaves that occur in a value or a parameter without their heads
    around: dict[int, set[int]] = {}  # axis -> axes that occur in every value together with it
    carriers: dict[int, list[tuple[fx.Node, str, int]]] = defaultdict(list)  # axis -> parameter dimensions with it

    for node in module.graph.nodes:
        for name, dims in parameters_of(node).items():
            for i, dim in enumerate(dims):
                channels = [axis for axis in dim if axis.kind == Kind.CHANNEL]
                for axis in channels:
                    seen.setdefault(id(axis), axis)
                    carriers[id(axis)].append((node, name, i))
                if channels:
                    contexts[id(channels[-1])].add(0 if len(channels) == 1 else id(channels[-2]))
                for outer in channels[:-2]:
                    outer.freeze("an axis outside the heads")
    heads = {outer for inner in contexts.values() for outer in inner if outer}
    for node in module.graph.nodes:
        present = {id(axis) for dim in type_of(node) for axis in dim}
        for key in present:
            around[key] = around.get(key, present) & present

    groups: list[ChannelGroup] = []
    taken: set[str] = set()
    for key, axis in seen.items():
        if key in heads:
            continue
        within = contexts[key] - {0}
        head = seen.get(next(iter(within))) if len(within) == 1 else None
        if len(within) > 1:
            axis.freeze("it is split into heads in more than one way")
        if head is not None and (0 in contexts[key] or id(head) not in around.get(key, set())):
            alone.add(key)
        # heads that are mixed, such as by a sum or a window over them, must keep the same channels
        mixed = key in alone or (head is not None and head.intact is not None)
        group = ChannelGroup(axis.name, axis, head, mixed, frozen=axis.frozen)
        if axis.intact is not None and head is not None and head.frozen is None and head.intact is None:
            group.whole_heads = axis.intact
        elif axis.intact is not None:
            group.frozen = group.frozen or axis.intact
        for node, name, i in carriers[key]:
            group.members.append(Member(str(node.target), name, i, _produces(module, node, i)))
        if group.producers:
            group.name = group.producers[0]
        elif group.frozen is None:
            group.frozen = "no layer of the model produces it"
        while group.name in taken:  # a fused layer has an axis of blocks and an axis of channels within a block
            group.name += f"/{axis.letter}"
        taken.add(group.name)
        groups.append(group)
    return groups


def _produces(module: fx.GraphModule, node: fx.Node, dim: int) -> bool:
    if node.op == "get_attr":
        return True
    layer = module_of(module, node)
    # a depthwise convolution only passes its channels through
    return ops.is_projection(layer) and dim == 0 and len(parameters_of(node)["weight"][1]) > 0


def head_axes(groups: list[ChannelGroup]) -> dict[int, list[ChannelGroup]]:
    """Return ``id`` of a head axis -> the groups that share this axis."""
    shared: dict[int, list[ChannelGroup]] = defaultdict(list)
    for group in groups:
        if group.head_axis is not None:
            shared[id(group.head_axis)].append(group)
    return shared
