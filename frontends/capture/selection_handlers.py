"""Handlers of calls that order elements, and that take or replace elements at computed positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import fx

from svitc.frontends.capture.elementwise_handlers import filled_with
from svitc.frontends.capture.graph_builder import GraphBuilder, Value
from svitc.frontends.capture.handler_arguments import call, positive, rank
from svitc.ir import axes
from svitc.ir.graph import input_type
from svitc.ir.operators import normalization, selection

Handler = Callable[[GraphBuilder, fx.Node], Value]
_EXPANSIONS = ("expand", "repeat", "expand_as", "broadcast_to", "tile")


class Ordered(tuple):
    """What ``sort``, ``topk`` and ``max(dim)`` give: values and positions, which have these names, too."""

    NAMES = ("values", "indices")


UNSTABLE = "equal scores in topk and sort are in the order of their positions, which torch promises only if stable=True"


def note_ties(b: GraphBuilder) -> None:
    """Note that the order of equal elements is one that the model's own call does not promise."""
    notes = b.program.info.setdefault("assumptions", [])
    if UNSTABLE not in notes:
        notes.append(UNSTABLE)


def ordered(b: GraphBuilder, x: fx.Node, dim: int, count: int, descending: bool) -> fx.Node:
    """Emit the positions of the first elements in the order of a dimension."""
    attributes = {"dim": dim, "count": count, "descending": descending}
    return b.emit("call_function", selection.positions, (x,), attributes)


def taken(b: GraphBuilder, x: fx.Node, index: fx.Node, dim: int) -> fx.Node:
    """Emit the elements at computed positions."""
    return b.emit("call_function", selection.take_along, (x, index), {"dim": dim})


def sort(values: bool) -> Handler:
    """Return a handler of ``sort``, or of ``argsort`` if not ``values``."""

    def handler(b: GraphBuilder, node: fx.Node) -> Value:
        names = ["dim", "descending"]
        if "stable" in node.kwargs or (len(node.args) > 1 and isinstance(node.args[1], bool)):
            names = ["stable", *names] if len(node.args) > 1 and isinstance(node.args[1], bool) else [*names, "stable"]
        given = dict(zip(["input", *names], call(b, node, *names, dim=-1, descending=False), strict=True))
        x = given["input"]
        if not given.get("stable"):
            note_ties(b)
        dim = positive(x, given["dim"])
        index = ordered(b, x, dim, axes.size(input_type(x)[dim]), bool(given["descending"]))
        return Ordered([taken(b, x, index, dim), index]) if values else index

    return handler


def topk(b: GraphBuilder, node: fx.Node) -> Value:
    """Emit the largest or smallest elements of a dimension, with their positions."""
    x, count, dim, largest, in_order = call(b, node, "k", "dim", "largest", "sorted", dim=-1, largest=True, sorted=True)
    if not in_order:
        raise b.refuse("topk with sorted=False gives its elements in no particular order", hint="Leave sorted away.")
    note_ties(b)
    dim = positive(x, dim)
    index = ordered(b, x, dim, int(count), bool(largest))
    return Ordered([taken(b, x, index, dim), index])


def extreme_position(descending: bool) -> Handler:
    """Return a handler of ``argmax`` or ``argmin``, which give the first of several equal elements."""

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        x, dim, keepdim = call(b, node, "dim", "keepdim", keepdim=False)
        if dim is None:
            raise b.refuse("the position of an extreme among all elements runs across the batch; name the dimension")
        return first_position(b, x, positive(x, dim), descending, bool(keepdim))

    return handler


def first_position(b: GraphBuilder, x: fx.Node, dim: int, descending: bool, keepdim: bool) -> fx.Node:
    """Emit the position of the first of the largest, or smallest, elements of a dimension."""
    index = ordered(b, x, dim, 1, descending)
    dims = input_type(index)
    return b.view(index, (*dims[:dim], *([()] if keepdim else []), *dims[dim + 1 :]))


def extreme_along(target: Callable, two_tensors: Handler) -> Handler:
    """Return a handler of ``x.max()``, of ``x.max(dim)`` and of ``max(x, y)``, or of their opposites."""

    def handler(b: GraphBuilder, node: fx.Node) -> Value:
        second = node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
        if isinstance(second, fx.Node):
            return two_tensors(b, node)
        x, dim, keepdim = call(b, node, "dim", "keepdim", keepdim=False)
        dims = tuple(range(rank(x))) if dim is None else (positive(x, dim),)
        value = b.emit("call_function", target, (x,), {"dims": dims, "keepdim": bool(keepdim)})
        if dim is None:
            return value
        return Ordered([value, first_position(b, x, dims[0], target is normalization.largest, bool(keepdim))])

    return handler


def unrepeated(b: GraphBuilder, raw: Any, dim: int) -> fx.Node:
    """Return a value without the repetition along dimensions of size 1, so that these keep no channels.

    Args:
        b: Builder of the graph.
        raw: The raw node.
        dim: The dimension whose elements are taken, which stays as it is.
    """
    x = b.arg(raw)
    name = getattr(raw.target, "__name__", raw.target)
    if name not in _EXPANSIONS or not isinstance(raw.args[0], fx.Node):
        return x
    before, after = raw.args[0].meta["val"].shape, raw.meta["val"].shape
    before = (*(1,) * (len(after) - len(before)), *before)
    if before[dim] != after[dim] or any(m not in (1, n) for m, n in zip(before, after, strict=True)):
        return x
    source = b.arg(raw.args[0])
    return b.view(source, ((),) * (len(after) - rank(source)) + input_type(source))


def gather(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``x.gather(dim, index)`` or ``take_along_dim(x, index, dim)``."""
    is_gather = getattr(node.target, "__name__", node.target) == "gather"
    names = ("dim", "index", "sparse_grad") if is_gather else ("indices", "dim")
    x, first, second, *_ = call(b, node, *names)
    dim, raw = (first, _argument(node, 2, "index")) if is_gather else (second, _argument(node, 1, "indices"))
    if dim is None or not isinstance(raw, fx.Node):
        raise b.refuse("elements are taken from all dimensions at once; name the dimension")
    dim = positive(x, dim)
    if is_gather:
        _check_whole(b, x, b.arg(raw), dim)
    return taken(b, x, unrepeated(b, raw, dim), dim)


def scatter(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``x.scatter(dim, index, source)``; the source may be a number."""
    name = "value" if "value" in node.kwargs else "src"
    x, dim, index, source = call(b, node, "dim", "index", name)
    dim, raw = positive(x, dim), _argument(node, 2, "index")
    if not isinstance(raw, fx.Node):
        raise b.refuse("elements are put at positions that are no tensor")
    _check_whole(b, x, index, dim)
    if isinstance(source, fx.Node):
        if axes.shape(input_type(source)) != axes.shape(input_type(index)):
            raise b.refuse("scatter of a part of the source is not supported")
        index = unrepeated(b, raw, dim)
    else:
        source = filled_with(b, index, float(source))
    return b.emit("call_function", selection.put_along, (x, index, source), {"dim": dim})


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _check_whole(b: GraphBuilder, x: fx.Node, index: fx.Node, dim: int) -> None:
    """Refuse positions that leave out a part of the other dimensions."""
    sizes = [axes.shape(tuple(d for i, d in enumerate(input_type(v)) if i != dim)) for v in (x, index)]
    if rank(x) != rank(index) or math.prod(sizes[0]) != math.prod(sizes[1]):
        raise b.refuse("positions for a part of the other dimensions are not supported")


def cosine_similarity(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit the cosine of the angle between two values."""
    names = {"x1": "input"} if "x1" in node.kwargs else {}
    node.kwargs = {names.get(k, k): v for k, v in node.kwargs.items()}
    x, y, dim, eps = call(b, node, "x2", "dim", "eps", dim=1, eps=1e-8)
    wide = max(rank(x), rank(y))
    x, y = (b.view(v, ((),) * (wide - rank(v)) + input_type(v)) for v in (x, y))
    attributes = {"dim": positive(x, dim), "eps": float(eps)}
    return b.emit("call_function", normalization.cosine_similarity, (x, y), attributes)


SELECTION_HANDLERS: dict[str, Handler] = {
    "sort": sort(values=True),
    "argsort": sort(values=False),
    "topk": topk,
    "argmax": extreme_position(descending=True),
    "argmin": extreme_position(descending=False),
    **dict.fromkeys(("gather", "take_along_dim"), gather),
    "scatter": scatter,
    "cosine_similarity": cosine_similarity,
}
