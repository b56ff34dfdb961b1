"""All that keeps a model from being captured, so that the user learns of it at once and not one by one.

Where an operation cannot be represented, a value of the same shape takes the place of its result, and the rest of the
model is looked at as well. What fails only because of such a value is not reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import fx

from svitc.errors import UnsupportedError
from svitc.frontends.capture.graph_builder import GraphBuilder, Value
from svitc.ir import axes, filled
from svitc.ir.axes import Axis, AxisConflict, Dims, Kind
from svitc.ir.graph import BATCH_PROBE, input_type
from svitc.ir.operators.regroup import regrouped_type

SHOWN = 20  # obstacles in a message


class Obstacles:
    """The errors of one model."""

    def __init__(self) -> None:
        self.errors: list[UnsupportedError] = []
        self._unsure: set[fx.Node] = set()  # raw nodes whose value is a stand-in, or computed from one

    def __bool__(self) -> bool:
        return bool(self.errors)

    def add(self, node: fx.Node, error: UnsupportedError) -> None:
        """Note that a raw node cannot be represented, unless a stand-in may be the cause."""
        is_guess = self.follow(node) and (isinstance(error.__cause__, AxisConflict) or node.op == "output")
        if not is_guess:
            self.errors.append(error)
        self._unsure.add(node)

    def follow(self, node: fx.Node) -> bool:
        """Return whether a raw node computes with stand-ins, so that its type is a guess."""
        if not self._unsure.isdisjoint(node.all_input_nodes):
            self._unsure.add(node)
        return node in self._unsure

    def error(self) -> UnsupportedError:
        """Return one error for all: that of the first obstacle, followed by the others, each line of code once."""
        first = self.errors[0]
        places = Counter((_without_layer(e.message), e.where) for e in self.errors)
        if len(places) == 1:
            return first
        lines = []
        for (text, where), count in places.items():
            message = next(e.message for e in self.errors if (_without_layer(e.message), e.where) == (text, where))
            again = f" (and {count - 1} more times)" if count > 1 else ""
            lines.append(f"{message}{again}" + (f"\n     at {where}" if where else ""))
        text = "\n".join(f"  {number}. {line}" for number, line in enumerate(lines[:SHOWN], 1))
        rest = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        return UnsupportedError(f"{len(lines)} obstacles:\n{text}{rest}", where=first.where, hint=first.hint)


def _without_layer(message: str) -> str:
    """Return a message without the path of the layer in front, which differs between equal blocks."""
    layer, colon, text = message.partition(": ")
    return text if colon and " " not in layer else message


def stand_in(b: GraphBuilder, node: fx.Node) -> Value | None:
    """Return a value, or several, of the shape of a raw node's, to look at the rest of the model with; None for none.

    The graph that they are in is good for nothing else.
    """
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return _placed(b, node, tuple(value.shape))
    if isinstance(value, (tuple, list)) and all(isinstance(v, torch.Tensor) for v in value):
        return tuple(_placed(b, node, tuple(v.shape)) for v in value)
    return None


def _placed(b: GraphBuilder, node: fx.Node, shape: tuple[int, ...]) -> fx.Node:
    placed = b.graph.placeholder(f"obstacle_{len(b.graph.nodes)}")
    sources = [n for n in (b.done.get(n) for n in node.all_input_nodes) if isinstance(n, fx.Node)]
    placed.meta["dims"] = _guessed([input_type(n) for n in sources], shape, placed.name)
    filled.track(placed, b.program.module)
    return placed


def _guessed(sources: Sequence[Dims], shape: tuple[int, ...], name: str) -> Dims:
    """Return a type of a shape: that of an input, or one whose time and batch are those of an input."""
    for dims in sources:
        if axes.shape(dims) == shape:
            return dims
    for dims in sources:
        try:
            return regrouped_type(dims, shape, name)
        except AxisConflict:
            continue
    known = [axis for dims in sources for dim in dims for axis in axes.resolve(dim)]
    kept = (axis for axis in known if axis.kind in (Kind.TIME, Kind.BATCH) and axis.size > 1)
    left: dict[Kind, Axis] = {axis.kind: axis for axis in kept}
    out = []
    for i, size in enumerate(shape):
        axis = next((a for a in left.values() if a.size == size), None)
        if axis is not None:
            del left[axis.kind]
        elif size == BATCH_PROBE and i < 2:
            axis = Axis("batch", size, Kind.BATCH, "b")
        out.append((axis or Axis(f"{name}/{i}", size, Kind.PIXEL, "n"),))
    return tuple(out)
