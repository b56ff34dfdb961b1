"""Handlers of calls that take parts of dimensions, put them together or move their elements."""

from __future__ import annotations

import operator
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
INDICES = "Index with numbers, ranges, lists of positions, or masks that do not depend on the input."
MAX_INDICES = 1 << 16  # of a list of positions, which the file stores
MAX_BLOCKS = 16  # a single position of more is a slice, since one Split computes all blocks


def concatenate(dim: int = 0) -> Handler:
    """Return a handler of a concatenation along a dimension, which is ``dim`` unless a call names one."""

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        tensors, at = _joined(b, node, dim)
        return join(b, tensors, positive(tensors[0], at))

    return handler


def join(b: GraphBuilder, tensors: Sequence[fx.Node], dim: int) -> fx.Node:
    """Emit the concatenation of tensors."""
    if len(tensors) == 1:
        return tensors[0]
    return b.emit("call_function", slicing.concatenate, tuple(tensors), {"dim": dim})


def stack(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit tensors along a new dimension, such as the time steps of a loop."""
    tensors, dim = _joined(b, node, 0)
    return stacked(b, tensors, positive(tensors[0], dim, extra=1))


def stacked(b: GraphBuilder, tensors: Sequence[fx.Node], dim: int) -> fx.Node:
    """Emit tensors along a new dimension."""
    thin = []
    for x in tensors:
        dims = input_type(x)
        thin.append(b.view(x, (*dims[:dim], (), *dims[dim:])))
    return b.emit("call_function", slicing.concatenate, tuple(thin), {"dim": dim})


def _joined(b: GraphBuilder, node: fx.Node, dim: int) -> tuple[list[fx.Node], int]:
    """Return the tensors and the dimension of a call."""
    names = ("tensors",) if "tensors" in node.kwargs else ()
    first, *given, at, axis = call(b, node, *names, "dim", "axis")
    return list(given[0] if given else first), next((d for d in (at, axis) if d is not None), dim)


def getitem(b: GraphBuilder, node: fx.Node) -> Value:
    """Emit an entry of a tuple, or an index of a tensor: ``qkv[0]``, ``x[:, 1]``, ``x[..., ::2]``, ``x[:, None]``."""
    x, index = b.arg(node.args[0]), b.arg(node.args[1])
    if isinstance(x, tuple):
        return x[index]
    entries = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [e for e in entries if not isinstance(e, fx.Node)]:
        at = next(i for i, e in enumerate(entries) if e is Ellipsis)
        named = sum(e is not None and e is not Ellipsis for e in entries)
        entries[at : at + 1] = [slice(None)] * (rank(x) - named)
    if sum(isinstance(e, (list, fx.Node)) for e in entries) > 1:
        raise b.refuse(f"indexing with {index} is not supported", hint=INDICES)
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
    raise b.refuse(f"indexing with {entry} is not supported", hint=INDICES)


def part(b: GraphBuilder, x: fx.Node, dim: int, entry: slice) -> fx.Node:
    """Emit a range of a dimension; the value itself where the range is all of it."""
    total = axes.size(input_type(x)[dim])
    if entry == slice(None):
        return x
    start, stop, step = entry.indices(total)
    if not len(range(start, stop, step)):
        raise b.refuse(f"an empty part ({start}:{stop}) of {total} elements is taken", hint="Leave it out.")
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
        raise b.refuse(
            "one sample of the batch is taken, so that the result is not one for each sample",
            hint="A file takes any number of images at once; compute for all of them.",
        )
    if count > MAX_BLOCKS:
        taken = part(b, x, dim, slice(index % count, index % count + 1))
    else:
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
        raise b.refuse("only a list of positions can be taken from a dimension", hint=INDICES)
    if _is_batch(x, dim):
        raise b.refuse(
            "samples of the batch are selected, so that the result is not one for each sample",
            hint="A file takes any number of images at once; compute for all of them.",
        )
    indices = tuple(i % total for i in entry)
    return b.emit("call_function", slicing.select_indices, (x,), {"dim": dim, "indices": indices})


def index_select(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``x.index_select(dim, positions)``."""
    x, dim, index = call(b, node, "dim", "index")
    return select_positions(b, x, positive(x, dim), index)


def narrow(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``x.narrow(dim, start, length)``."""
    x, dim, start, length = call(b, node, "dim", "start", "length")
    dim = positive(x, dim)
    start %= axes.size(input_type(x)[dim])
    return part(b, x, dim, slice(start, start + length))


def select(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``x.select(dim, index)``."""
    x, dim, index = call(b, node, "dim", "index")
    return position(b, x, positive(x, dim), index)


def parts_of(b: GraphBuilder, x: fx.Node, dim: int, sizes: Sequence[int]) -> tuple[fx.Node, ...]:
    """Emit the parts of a dimension, one after the other."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(part(b, x, dim, slice(start, start + n)) for start, n in zip(starts, sizes, strict=True))


def chunk(b: GraphBuilder, node: fx.Node) -> tuple[fx.Node, ...]:
    """Emit the parts of a dimension that ``chunk`` gives, of which the last may be smaller."""
    x, _, dim = call(b, node, "chunks", "dim", dim=0)
    return _parts(b, node, x, dim)


def split(b: GraphBuilder, node: fx.Node) -> tuple[fx.Node, ...]:
    """Emit the parts of a dimension that ``split`` gives."""
    names = ("split_size_or_sections", "split_size", "split_sizes", "indices_or_sections", "sections", "indices")
    given = next((name for name in names if name in node.kwargs), names[0])
    x, _, dim = call(b, node, given, "dim", dim=0)
    return _parts(b, node, x, dim)


def _parts(b: GraphBuilder, node: fx.Node, x: fx.Node, dim: int) -> tuple[fx.Node, ...]:
    """Emit the parts of a dimension, as many and as large as was recorded."""
    dim = positive(x, dim)
    sizes = [value.shape[dim] for value in node.meta["val"]]
    if len(set(sizes)) != 1:
        return parts_of(b, x, dim, sizes)
    return tuple(b.emit("call_function", ops.take_block, (x, dim, i, len(sizes))) for i in range(len(sizes)))


def unbind(b: GraphBuilder, node: fx.Node) -> tuple[fx.Node, ...]:
    """Emit each position of a dimension."""
    x, dim = call(b, node, "dim", dim=0)
    dim = positive(x, dim)
    count = axes.size(input_type(x)[dim])
    parts = [b.emit("call_function", ops.take_block, (x, dim, i, count)) for i in range(count)]
    return tuple(b.view(p, d[:dim] + d[dim + 1 :]) for p in parts for d in [input_type(p)])


def repeat_interleave(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit the repetition of each position of a dimension."""
    x, repeats, dim, _ = call(b, node, "repeats", "dim", "output_size")
    if not isinstance(repeats, int) or dim is None:
        raise b.refuse("repeat_interleave is supported with one number and a dimension", hint="Name the dimension.")
    dim = positive(x, dim)
    count = axes.size(input_type(x)[dim])
    return x if repeats == 1 else select_positions(b, x, dim, [i for i in range(count) for _ in range(repeats)])


def difference(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``torch.diff``: each position less the one before it."""
    x, n, dim = call(b, node, "n", "dim", n=1, dim=-1)
    dim = positive(x, dim)
    for _ in range(n):
        count = axes.size(input_type(x)[dim])
        later, earlier = part(b, x, dim, slice(1, count)), part(b, x, dim, slice(0, count - 1))
        x = b.emit("call_function", operator.sub, (later, earlier))
    return x


def windows(b: GraphBuilder, x: fx.Node, dim: int, size: int, step: int) -> fx.Node:
    """Emit ``x.unfold(dim, size, step)``: windows of a dimension, whose elements form a new last dimension."""
    dim = positive(x, dim)
    count = axes.size(input_type(x)[dim])
    last = (count - size) // step * step  # the start of the last window
    return stacked(b, [part(b, x, dim, slice(i, last + i + 1, step)) for i in range(size)], rank(x))


def flip(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit dimensions in the opposite order."""
    x, *dims = b.arg(node.args)
    given = dims or [node.kwargs["dims"]]
    flat = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    return b.emit("call_function", slicing.flip, (x,), {"dims": tuple(positive(x, int(d)) for d in flat)})


def flip_of(dim: int) -> Handler:
    """Return a handler of ``flipud`` or ``fliplr``."""
    return lambda b, node: b.emit("call_function", slicing.flip, (b.arg(node.args[0]),), {"dims": (dim,)})


def roll(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit dimensions whose elements move on, from the end to the start."""
    x, shifts, dims = call(b, node, "shifts", "dims")
    if dims is None:
        raise b.refuse("roll without dimensions runs over all of them; name the dimensions")
    shifts, dims = ((v,) if isinstance(v, int) else tuple(v) for v in (shifts, dims))
    attributes = {"shifts": shifts, "dims": tuple(positive(x, d) for d in dims)}
    return b.emit("call_function", slicing.roll, (x,), attributes)


SLICING_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("cat", "concat", "concatenate", "vstack"), concatenate()),
    "hstack": concatenate(dim=1),
    "dstack": concatenate(dim=2),
    "stack": stack,
    "getitem": getitem,
    **dict.fromkeys(("chunk", "unsafe_chunk"), chunk),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "tensor_split"), split),
    "unbind": unbind,
    "index_select": index_select,
    "repeat_interleave": repeat_interleave,
    "narrow": narrow,
    "select": select,
    "diff": difference,
    "flip": flip,
    "flipud": flip_of(0),
    "fliplr": flip_of(1),
    "roll": roll,
}
