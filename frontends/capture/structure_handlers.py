"""Handlers of calls that repeat and pad."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import einops
import torch
from torch import fx

from svitc.frontends.capture.graph_builder import GraphBuilder, Value
from svitc.frontends.capture.handler_arguments import call, rank, spelled_out, value_shape
from svitc.ir import axes
from svitc.ir.axes import Kind
from svitc.ir.graph import input_type
from svitc.ir.operators import structure
from svitc.ir.views import emit_view, tokens

Handler = Callable[[GraphBuilder, fx.Node], Value]


def repeat(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit repeat, expand and tile: dimensions of size 1 become new axes, others are tiled."""
    if node.target is einops.repeat:
        source = b.arg(node.args[0])
        pattern = spelled_out(str(node.args[1]), rank(source))
        return b.emit("call_function", einops.repeat, (source, pattern), dict(node.kwargs))
    x = b.arg(node.args[0])
    dims, sizes = input_type(x), value_shape(node)
    dims = ((),) * (len(sizes) - len(dims)) + dims
    repeated = [i for i, (dim, size) in enumerate(zip(dims, sizes, strict=True)) if axes.size(dim) != size]
    tiled = {i: sizes[i] // axes.size(dims[i]) for i in repeated if dims[i]}
    x = repeat_new(b, x, dims, [n if i not in tiled else axes.size(dims[i]) for i, n in enumerate(sizes)])
    if not tiled:
        return x
    if any(axis.kind == axes.Kind.BATCH for i in tiled for axis in dims[i]):
        return copied_outside(b, x, sizes)
    return b.emit("call_function", structure.tile, (x,), {"repeats": tuple(tiled.get(i, 1) for i in range(len(sizes)))})


def copied_outside(b: GraphBuilder, x: fx.Node, sizes: Sequence[int]) -> fx.Node:
    """Emit a repetition of whole dimensions, such as the batch for each time step: a new axis outside each of them."""
    for i, size in enumerate(sizes):
        dims = input_type(x)
        copies = size // axes.size(dims[i])
        if copies == 1:
            continue
        apart = b.view(x, tuple(dim for dim in dims if dim))
        letters = " ".join(f"d{j}" for j, dim in enumerate(dims) if dim)
        copied = b.emit("call_function", einops.repeat, (apart, f"{letters} -> t {letters}"), {"t": copies})
        new, *rest = tokens(input_type(copied))
        places = iter(rest)
        target = [next(places) if dim else () for dim in dims]
        target[i] = (*new, *target[i])
        x = emit_view(b.emit, copied, (new, *rest), tuple(target))
    return x


def repeat_new(b: GraphBuilder, x: fx.Node, dims: axes.Dims, sizes: Sequence[int]) -> fx.Node:
    """Emit the repetition of a value along dimensions of size 1.

    Args:
        x: The value.
        dims: Its type, perhaps with further dimensions of size 1 in front.
        sizes: The sizes after the repetition.
    """
    repeated = [i for i, (dim, size) in enumerate(zip(dims, sizes, strict=True)) if axes.size(dim) != size]
    if not repeated and axes.size(dims[0]) == 1 and not dims[0] and rank(x) == 5 and sizes[0] == 1:
        repeated = [0]  # a static image at a single time step
    if not repeated:
        return b.view(x, dims)
    names: list[str] = []
    for i, dim in enumerate(dims):
        letter = dim[0].letter if len(dim) == 1 else f"n{i}" if dim else "1"
        names.append(f"{letter}{i}" if letter in names and dim else letter)
    source = [name for i, name in enumerate(names) if dims[i]]
    target = [("t" if i == 0 else f"r{i}") if i in repeated else name for i, name in enumerate(names)]
    squeezed = b.view(x, tuple(dim for dim in dims if dim))
    pattern = f"{' '.join(source)} -> {' '.join(target)}"
    return b.emit("call_function", einops.repeat, (squeezed, pattern), {target[i]: sizes[i] for i in repeated})


def pad(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit padding; zeros around pixels are a layer, which passes know."""
    x, sizes, mode, value = call(b, node, "pad", "mode", "value", mode="constant")
    return padded(b, x, tuple(sizes), mode, value or 0)


def padded(b: GraphBuilder, x: fx.Node, sizes: tuple[int, ...], mode: str, number: float) -> fx.Node:
    """Emit padding.

    Args:
        x: What is padded.
        sizes: Elements before and after the last dimension, the one before it, and so on.
        mode: ``constant``, ``reflect``, ``replicate`` or ``circular``.
        number: What is added for ``constant``.
    """
    if not any(sizes):
        return x
    if mode != "constant":  # PyTorch counts the zeros of dimensions that stay as they are
        return b.emit("call_function", structure.pad_edges, (x,), {"padding": sizes, "mode": mode})
    while sizes[-2:] == (0, 0):
        sizes = sizes[:-2]
    if number != 0:
        return b.emit("call_function", structure.pad_number, (x,), {"padding": sizes, "number": number})
    around = [axis.kind for dim in input_type(x)[-(len(sizes) // 2) :] for axis in dim]
    if len(sizes) in (2, 4) and rank(x) >= 3 and min(sizes) >= 0 and set(around) <= {Kind.PIXEL}:
        return b.emit("call_module", b.layer("pad", torch.nn.ZeroPad2d((*sizes, 0, 0)[:4])), (x,))  # type: ignore[arg-type]
    return b.emit("call_function", structure.pad_zeros, (x,), {"padding": sizes})


STRUCTURE_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("repeat", "expand", "expand_as", "tile", "broadcast_to"), repeat),
    "pad": pad,
}
