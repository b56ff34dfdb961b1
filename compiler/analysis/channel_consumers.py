"""Readers: the places at which channels are summed up, and whether they would notice that one is gone."""

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

# what keeps channels apart: one that is 0 makes no other channel different; pools that slide over some have frozen them
APART_MODULES = (*ops.CONVOLUTIONS, *ops.BATCH_NORMS, *ops.POOLS, *ops.PADS, *ops.NEURONS, *ops.STATELESS_NEURONS)
APART = (*ops.ELEMENTWISE, *ops.VIEWS, ops.take_block)


@dataclass
class ChannelConsumer:
    """A place where channels are summed up.

    Attributes:
        parts: for each operand which of its elements are 0 for every input, and the axes of that array's dimensions.
        summed: the ids of the axes that end here.
    """

    node: fx.Node
    parts: list[tuple[torch.Tensor, list[Axis]]]
    summed: set[int]

    def refresh(self, chosen: Chosen) -> None:
        """Look again, now that some of the channels that are made here are gone."""

    def allows(self, *axes: Axis | None) -> torch.Tensor:
        """Whether elements along ``axes`` (heads and their dimensions; None for no heads) may go."""
        return torch.stack(torch.broadcast_tensors(*(onto(flags, of, axes) for flags, of in self.parts))).any(0)

    def reasons(self, *axes: Axis | None) -> Iterator[tuple[torch.Tensor, str]]:
        """Which elements may not go, and why; the first that applies counts."""
        yield ~self.allows(*axes), f"{describe(self.node)} sums it up with others"


class ProjectionConsumer(ChannelConsumer):
    """A layer with weights.

    Attributes:
        value: what an input is, if it is the same for every input of the network, else 0.
        folds: whether it would go into the bias.
    """

    def __init__(self, program: Program, node: fx.Node, module: nn.Module, x: Interval) -> None:
        assert isinstance(module, (*ops.CONVOLUTIONS, nn.Linear))
        source = program.type_of(node.all_input_nodes[0])
        at = 1 if isinstance(module, ops.CONVOLUTIONS) else len(source) - 1
        low, high = (over_inputs(source, at, v, most) for v, most in ((x.low, False), (x.high, True)))
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
        return [axis.size for axis in self.leaves]

    def needs_fold(self, *axes: Axis | None) -> torch.Tensor:
        return ~onto(~self.folds.reshape(self.shape), self.leaves, axes)

    def reasons(self, *axes: Axis | None) -> Iterator[tuple[torch.Tensor, str]]:
        no, name = ~self.allows(*axes), describe(self.node)
        if not self.once:
            yield no & onto(self.constant.reshape(self.shape), self.leaves, axes), f"{name} is called more than once"
        yield no & onto(self.borders, self.leaves, axes), f"{name} pads zeros around it"
        yield no, f"{name} gets other signals in it"


def onto(flags: torch.Tensor, of: Sequence[Axis], axes: Sequence[Axis | None]) -> torch.Tensor:
    """Flags ``[size of each of of]`` that hold all along other axes: ``[size of each of axes]``, 1 where it has none.

    An axis may stand twice, as in a table of channels by channels. Its last place is the one that is asked about.
    """
    last = {id(axis): i for i, axis in enumerate(of)}
    places = [last.get(id(axis)) for axis in axes]
    for j, i in enumerate(places):
        if i is not None and i != len(of) - 1 and sum(axis is axes[j] for axis in of) > 1:
            places[j] = None  # not the one that is summed up: then it must hold for all
    for i in reversed(range(len(of))):
        if i not in places:
            flags = flags.all(i)
    kept = sorted(i for i in places if i is not None)
    flags = flags.permute([kept.index(i) for i in places if i is not None])
    return flags.reshape([1 if i is None else of[i].size for i in places])


def consumers_of(program: Program, bounds: dict[fx.Node, Interval]) -> Iterator[ChannelConsumer]:
    for node in program.graph.nodes:
        module = program.module_of(node)
        if ops.is_projection(module):
            if getattr(module, "groups", 1) == 1:  # else depthwise, which sums up nothing, or frozen
                yield ProjectionConsumer(program, node, module, bounds[node.all_input_nodes[0]])
        elif node.target is torch.matmul:
            yield _sum(program, bounds, node, [(node.args[0], -1), (node.args[1], -2)])
        elif node.target in ops.REDUCTIONS:
            for at in node.kwargs["dim"]:
                yield _sum(program, bounds, node, [(node.args[0], at)])
        elif not (isinstance(module, APART_MODULES) or node.target in APART or node.op in ("placeholder", "get_attr")):
            yield from _unknown(program, node)


def _unknown(program: Program, node: fx.Node) -> Iterator[ChannelConsumer]:
    """The output, and any operation that is not known to keep channels apart: nothing that it reads may go."""
    for x in node.all_input_nodes:
        of = channels(program.type_of(x))
        yield ChannelConsumer(
            node, [(torch.zeros([axis.size for axis in of], dtype=torch.bool), of)], {id(axis) for axis in of}
        )


def _sum(
    program: Program, bounds: dict[fx.Node, Interval], node: fx.Node, operands: list[tuple[fx.Node, int]]
) -> ChannelConsumer:
    """A reader of one dimension of each operand."""
    parts, summed = [], set()
    for x, at in operands:
        dims = list(program.type_of(x))
        dims.append(dims.pop(at))
        bound, of = bounds[x], channels(tuple(dims))
        silent = ((bound.low == 0) & (bound.high == 0)).movedim(at, -1)
        parts.append((silent.reshape([axis.size for axis in of]), of))
        summed |= {id(axis) for axis in dims[-1] if axis.kind == Kind.CHANNEL}
    return ChannelConsumer(node, parts, summed)
