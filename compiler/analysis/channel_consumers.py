"""Channel consumers: the places at which channels are summed up, and which channels they do not depend on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from svitc.analysis.interval_layers import by_taps, over_inputs, padded_taps
from svitc.analysis.interval_neurons import Interval
from svitc.analysis.intervals import channels
from svitc.ir import ops
from svitc.ir.axes import Axis, Kind
from svitc.ir.channel_slicing import Chosen
from svitc.ir.graph import describe
from svitc.ir.program import Program

# Operations that keep channels apart: a channel that is 0 changes no other channel. Channels that a pool slides over
# are frozen anyway.
APART_MODULES = (
    *ops.CONVOLUTIONS,
    *ops.BATCH_NORMS,
    *ops.POOLS,
    *ops.PADS,
    *ops.STATEFUL_NEURONS,
    *ops.STATELESS_NEURONS,
)
APART = (*ops.ELEMENTWISE, *ops.VIEWS, ops.take_block)


@dataclass
class ChannelConsumer:
    """A place at which channels are summed up.

    Attributes:
        node: the operation that sums them up.
        parts: for each operand, which of its elements are 0 for every input, and the axes of that array.
        summed: ids of the axes that are summed up here.
    """

    node: fx.Node
    parts: list[tuple[torch.Tensor, list[Axis]]]
    summed: set[int]

    def refresh(self, chosen: Chosen) -> None:
        """Update after channels were removed; ``chosen`` gives the remaining output channels of a dimension."""

    def allows(self, *axes: Axis | None) -> torch.Tensor:
        """Return whether elements along ``axes`` (heads and their dimensions; None for no heads) can be removed."""
        return torch.stack(torch.broadcast_tensors(*(onto(flags, of, axes) for flags, of in self.parts))).any(0)

    def reasons(self, *axes: Axis | None) -> Iterator[tuple[torch.Tensor, str]]:
        """Yield which elements must stay, and why; the first reason that applies to an element counts."""
        yield ~self.allows(*axes), f"{describe(self.node)} sums it up with others"


class ProjectionConsumer(ChannelConsumer):
    """A convolution or linear layer.

    Attributes:
        value: value of each input that is the same for every image, else 0.
        folds: whether that value would be added to the bias.
    """

    def __init__(self, program: Program, node: fx.Node, module: nn.Module, x: Interval) -> None:
        assert isinstance(module, (*ops.CONVOLUTIONS, nn.Linear))
        source = program.type_of(node.all_input_nodes[0])
        at = 1 if isinstance(module, ops.CONVOLUTIONS) else len(source) - 1
        low, high = (over_inputs(source, at, v, upper) for v, upper in ((x.low, False), (x.high, True)))
        low, high = low.flatten(0, -2).amin(0), high.flatten(0, -2).amax(0)
        self.leaves = list(source[at])
        self.silent, self.constant = (low == 0) & (high == 0), (low == high) & low.isfinite()
        self.value = torch.where(self.constant, low, 0.0)
        self.outputs, self.once = program.parameters_of(node)["weight"][0], program.called_once(node)
        used = by_taps(module) != 0
        padded = padded_taps(module, source, program.type_of(node))
        self.used, self.bordered = used.any(-1), used[..., padded].any(-1)
        super().__init__(node, [], {id(axis) for axis in self.leaves})
        self.refresh(lambda _: None)

    def refresh(self, chosen: Chosen) -> None:
        alive = chosen(self.outputs)
        used, bordered = (
            (v if alive is None else v[torch.from_numpy(alive)]).any(0) for v in (self.used, self.bordered)
        )
        free = self.silent | ~used
        self.folds = ~free & self.constant & ~bordered & self.once
        self.parts = [((free | self.folds).reshape(self.shape), self.leaves)]
        self.borders = (self.constant & bordered).reshape(self.shape)

    @property
    def shape(self) -> list[int]:
        """Return the sizes of the axes of the dimension that is summed up."""
        return [axis.size for axis in self.leaves]

    def needs_fold(self, *axes: Axis | None) -> torch.Tensor:
        """Return whether elements along ``axes`` are removed only by adding their value to the bias."""
        return ~onto(~self.folds.reshape(self.shape), self.leaves, axes)

    def reasons(self, *axes: Axis | None) -> Iterator[tuple[torch.Tensor, str]]:
        stays, name = ~self.allows(*axes), describe(self.node)
        if not self.once:
            yield stays & onto(self.constant.reshape(self.shape), self.leaves, axes), f"{name} is called more than once"
        yield stays & onto(self.borders, self.leaves, axes), f"{name} pads zeros around it"
        yield stays, f"{name} gets other signals in it"


def onto(flags: torch.Tensor, of: Sequence[Axis], axes: Sequence[Axis | None]) -> torch.Tensor:
    """Return flags that hold everywhere along the other axes.

    An axis may occur twice, as in a table of channels by channels. Its last place is the one that is reduced to.

    Args:
        flags: one dimension for each axis of ``of``.
        of: axes of the flags.
        axes: axes of the result; None for a dimension of size 1.

    Returns:
        one dimension for each of ``axes``, of size 1 where ``of`` does not have the axis.
    """
    last = {id(axis): i for i, axis in enumerate(of)}
    places = [last.get(id(axis)) for axis in axes]
    for j, i in enumerate(places):
        if i is not None and i != len(of) - 1 and sum(axis is axes[j] for axis in of) > 1:
            places[j] = None  # not the place that is summed up: the flag must hold for all
    for i in reversed(range(len(of))):
        if i not in places:
            flags = flags.all(i)
    kept = sorted(i for i in places if i is not None)
    flags = flags.permute([kept.index(i) for i in places if i is not None])
    return flags.reshape([1 if i is None else of[i].size for i in places])


def consumers_of(program: Program, bounds: dict[fx.Node, Interval]) -> Iterator[ChannelConsumer]:
    """Yield the places of a program at which channels are summed up, in order."""
    for node in program.graph.nodes:
        module = program.module_of(node)
        if ops.is_projection(module):
            groups = getattr(module, "groups", 1)
            if groups == 1:
                yield ProjectionConsumer(program, node, module, bounds[node.all_input_nodes[0]])
            elif program.type_of(node)[1] != program.type_of(node.all_input_nodes[0])[1]:  # else it is depthwise
                yield _sum(program, bounds, node, [(node.args[0], 1)])
        elif node.target is torch.matmul:
            yield _sum(program, bounds, node, [(node.args[0], -1), (node.args[1], -2)])
        elif node.target in ops.REDUCTIONS:
            for at in node.kwargs["dim"]:
                yield _sum(program, bounds, node, [(node.args[0], at)])
        elif not (isinstance(module, APART_MODULES) or node.target in APART or node.op in ("placeholder", "get_attr")):
            yield from _unknown(program, node)


def _unknown(program: Program, node: fx.Node) -> Iterator[ChannelConsumer]:
    """Yield a consumer that lets nothing be removed: the output, or an operation that may mix channels."""
    for x in node.all_input_nodes:
        of = channels(program.type_of(x))
        yield ChannelConsumer(
            node, [(torch.zeros([axis.size for axis in of], dtype=torch.bool), of)], {id(axis) for axis in of}
        )


def _sum(
    program: Program, bounds: dict[fx.Node, Interval], node: fx.Node, operands: list[tuple[fx.Node, int]]
) -> ChannelConsumer:
    """Return the consumer of one dimension of each operand."""
    parts, summed = [], set()
    for x, at in operands:
        dims = list(program.type_of(x))
        dims.append(dims.pop(at))
        bound, of = bounds[x], channels(tuple(dims))
        silent = ((bound.low == 0) & (bound.high == 0)).movedim(at, -1)
        parts.append((silent.reshape([axis.size for axis in of]), of))
        summed |= {id(axis) for axis in dims[-1] if axis.kind == Kind.CHANNEL}
    return ChannelConsumer(node, parts, summed)
