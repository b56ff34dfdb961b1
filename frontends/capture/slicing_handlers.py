"""Handlers of calls that take parts of dimensions, put them together or move their elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from svitc.frontends.capture.graph_builder import GraphBuilder, Value
from svitc.frontends.capture.handler_arguments import call, positive, rank
from svitc.ir import axes, ops
from svitc.ir.graph import attribute_of, input_type
from svitc.ir.operators import slicing

Handler = Callable[[GraphBuilder, fx.Node], Value]
MAX_INDICES = 1 << 16  # of a list of positions, which the file stores


def concatenate(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit the concatenation of tensors along a dimension."""
    tensors, dim = call(b, node, "dim", dim=0)
    tensors = [x for x in (tensors if tensors is not None else b.arg(node.kwargs["tensors"]))]
    if len(tensors) == 1:
        return tensors[0]
    return b.emit("call_function", slicing.concatenate, tuple(tensors), {"dim": positive(tensors[0], dim)})


def stack(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit tensors along a new dimension, such as the time steps of a loop."""
    tensors, dim = call(b, node, "dim", dim=0)
    tensors = list(tensors if tensors is not None else b.arg(node.kwargs["tensors"]))
    dim = positive(tensors[0], dim, extra=1)
    thin = []
    for x in tensors:
        dims = input_type(x)
        thin.append(b.view(x, (*dims[:dim], (), *dims[dim:])))
    return b.emit("call_function", slicing.concatenate, tuple(thin), {"dim": dim})


def getitem(b: GraphBuilder, node: fx.Node) -> Value:
    """Emit an entry of a tuple, or an index of a tensor: ``qkv[0]``, ``x[:, 1]``, ``x[..., ::2]``, ``x[:, None]``."""
    x, index = b.arg(node.args[0]), b.arg(node.args[1])
    if isinstance(x, tuple):
        if not isinstance(index, int) or index >= len(x):
            raise b.refuse("the positions of extremes, which are data, are not supported")
        return x[index]
    entries = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [e for e in entries if not isinstance(e, fx.Node)]:
        at = next(i for i, e in enumerate(entries) if e is Ellipsis)
        named = sum(e is not None and e is not Ellipsis for e in entries)
        entries[at : at + 1] = [slice(None)] * (rank(x) - named)
    if sum(isinstance(e, (list, fx.Node)) for e in entries) > 1:
        raise b.refuse(f"indexing with {index} is not supported")
    dim = 0
    for entry in entries:
        x, dim = indexed(b, x, dim, entry)
    return x


def indexed(b: GraphBuilder, x: fx.Node, dim: int, entry: Any) -> tuple[fx.Node, int]:
    """Emit what one entry of an index does, and return the value and its next dimension."""
    dims = input_type(x)
    if entry is None:
        return b.view(x, (*dims[:dim], (), *dims[dim:])), dim + 1
    if isinstance(entry, slice):
        return part(b, x, dim, entry), dim + 1
    if isinstance(entry, int) and not isinstance(entry, bool):
        return position(b, x, dim, entry), dim
    if isinstance(entry, (list, fx.Node)):
        return select_positions(b, x, dim, entry), dim + 1
    raise b.refuse(f"indexing with {entry} is not supported")


def part(b: GraphBuilder, x: fx.Node, dim: int, entry: slice) -> fx.Node:
    """Emit a range of a dimension; the value itself where the range is all of it."""
    total = axes.size(input_type(x)[dim])
    if entry == slice(None):
        return x
    start, stop, step = entry.indices(total)
    if not len(range(start, stop, step)):
        raise b.refuse(f"an empty part ({start}:{stop}) of {total} elements is taken")
    if (start, stop, step) == (0, total, 1) and not _is_batch(x, dim):
        return x
    attributes = {"dim": dim, "start": start, "stop": stop, "step": step}
    return b.emit("call_function", slicing.slice_range, (x,), attributes)


def _is_batch(x: fx.Node, dim: int) -> bool:
    return any(axis.kind == axes.Kind.BATCH for axis in input_type(x)[dim])


def position(b: GraphBuilder, x: fx.Node, dim: int, index: int) -> fx.Node:
    """Emit one position of a dimension, which is gone then."""
    count = axes.size(input_type(x)[dim])
    if _is_batch(x, dim):
        raise b.refuse("one sample of the batch is taken, so that the result is not one for each sample")
    taken = b.emit("call_function", ops.take_block, (x, dim, index % count, count)) if count > 1 else x
    dims = input_type(taken)
    return b.view(taken, dims[:dim] + dims[dim + 1 :])


def select_positions(b: GraphBuilder, x: fx.Node, dim: int, entry: Any) -> fx.Node:
    """Emit the elements of a dimension at constant positions."""
    if isinstance(entry, fx.Node):
        if entry.op != "get_attr":
            raise b.refuse(
                "positions that depend on the data are taken",
                hint="A compiled graph takes the same path for every input; multiply by a mask instead.",
            )
        values = attribute_of(b.program.module, str(entry.target))
        if values.dtype == torch.bool:
            values = values.nonzero().flatten()
        entry = values.tolist() if values.ndim == 1 and values.numel() <= MAX_INDICES else None
    total = axes.size(input_type(x)[dim])
    if not isinstance(entry, list) or not entry or not all(isinstance(i, int) for i in entry):
        raise b.refuse("only a list of positions can be taken from a dimension")
    indices = tuple(i % total for i in entry)
    return b.emit("call_function", slicing.select_indices, (x,), {"dim": dim, "indices": indices})


def index_select(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``x.index_select(dim, positions)``."""
    x, dim, index = call(b, node, "dim", "index")
    return select_positions(b, x, positive(x, dim), index)


def narrow(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``x.narrow(dim, start, length)``."""
    x, dim, start, length = call(b, node, "dim", "start", "length")
    return part(b, x, positive(x, dim), slice(start, start + length))


def select(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``x.select(dim, index)``."""
    x, dim, index = call(b, node, "dim", "index")
    return position(b, x, positive(x, dim), index)


def parts_of(b: GraphBuilder, x: fx.Node, dim: int, sizes: Sequence[int]) -> tuple[fx.Node, ...]:
    """Emit the parts of a dimension, one after the other."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(part(b, x, dim, slice(start, start + n)) for start, n in zip(starts, sizes, strict=True))


def flip(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit dimensions in the opposite order."""
    x, *dims = b.arg(node.args)
    given = dims or [node.kwargs["dims"]]
    flat = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    return b.emit("call_function", slicing.flip, (x,), {"dims": tuple(positive(x, int(d)) for d in flat)})


def roll(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit dimensions whose elements move on, from the end to the start."""
    x, shifts, dims = call(b, node, "shifts", "dims")
    if dims is None:
        raise b.refuse("roll without dimensions runs over all of them; name the dimensions")
    shifts, dims = ((v,) if isinstance(v, int) else tuple(v) for v in (shifts, dims))
    attributes = {"shifts": shifts, "dims": tuple(positive(x, d) for d in dims)}
    return b.emit("call_function", slicing.roll, (x,), attributes)


SLICING_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenate),
    "stack": stack,
    "getitem": getitem,
    "index_select": index_select,
    "narrow": narrow,
    "select": select,
    "flip": flip,
    "roll": roll,
}
