"""Handlers of raw operations, by the name a model calls them: each emits canonical operations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import einops
import torch
from torch import fx

from svitc.frontends.capture.graph_builder import GraphBuilder
from svitc.ir import axes, ops
from svitc.ir.einops_pattern import bind_letters
from svitc.ir.graph import input_type
from svitc.ir.views import emit_view, follow, tokens

Handler = Callable[[GraphBuilder, fx.Node], Any]


def call(b: GraphBuilder, node: fx.Node, *names: str, **defaults: Any) -> list[Any]:
    """The arguments of a call by name, its tensor first; positional and keyword calls read the same."""
    args, kwargs = b.arg(node.args), b.arg(node.kwargs)
    rest = list(args[1:])
    values = [args[0] if args else kwargs.get("input")]
    for name in names:
        if rest:
            values.append(rest.pop(0))
        elif name in kwargs:
            values.append(kwargs[name])
        else:
            values.append(defaults.get(name))
    return values


def variadic(b: GraphBuilder, node: fx.Node, name: str) -> tuple[fx.Node, tuple[int, ...]]:
    """``x.f(1, 2)``, ``x.f((1, 2))`` and ``f(x, name=(1, 2))`` alike."""
    args, kwargs = b.arg(node.args), b.arg(node.kwargs)
    values = args[1:] or (kwargs[name],)
    if len(values) == 1 and isinstance(values[0], (tuple, list, torch.Size)):
        values = tuple(values[0])
    return args[0], tuple(int(v) for v in values)


def rank(b: GraphBuilder, x: fx.Node) -> int:
    return len(input_type(x))


def positive(b: GraphBuilder, x: fx.Node, dim: int, extra: int = 0) -> int:
    return dim % (rank(b, x) + extra)


def value_shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def reshape(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """reshape, view, flatten, unflatten: the raw value's shape says what becomes of the axes."""
    return b.reshape(b.arg(node.args[0]), value_shape(node))


def same(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """contiguous, clone, detach: nothing to a program."""
    return b.arg(node.args[0])


def cast(b: GraphBuilder, node: fx.Node) -> fx.Node:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    if x.meta["val"].dtype != node.meta["val"].dtype:
        raise b.refuse(f"a cast from {x.meta['val'].dtype} to {node.meta['val'].dtype} is not supported")
    return b.arg(x)


def transpose(b: GraphBuilder, node: fx.Node) -> fx.Node:
    x, *dims = call(b, node, "dim0", "dim1")
    order = list(range(rank(b, x)))
    first, second = (positive(b, x, dim) for dim in dims)
    order[first], order[second] = order[second], order[first]
    return b.permute(x, order)


def permute(b: GraphBuilder, node: fx.Node) -> fx.Node:
    x, order = variadic(b, node, "dims")
    return b.permute(x, [positive(b, x, i) for i in order])


def attribute(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """``x.T``, ``x.mT``, ``x.data``: what a proxy does not answer by itself."""
    x, name = b.arg(node.args[0]), node.args[1]
    order = list(range(rank(b, x)))
    if name == "data":
        return x
    if name == "T" or (name == "mT" and len(order) > 1):
        return b.permute(x, order[::-1] if name == "T" else [*order[:-2], order[-1], order[-2]])
    raise b.refuse(f"a tensor's {name} is not an operation that svitc can represent")


def unsqueeze(b: GraphBuilder, node: fx.Node) -> fx.Node:
    x, dim = call(b, node, "dim")
    dim = positive(b, x, dim, extra=1)
    dims = input_type(x)
    return b.view(x, (*dims[:dim], (), *dims[dim:]))


def squeeze(b: GraphBuilder, node: fx.Node) -> fx.Node:
    x, dim = call(b, node, "dim")
    dims = input_type(x)
    if dim is None:
        raise b.refuse("squeeze without a dimension depends on sizes; name the dimension")
    dim = positive(b, x, dim)
    if axes.size(dims[dim]) != 1:
        return x
    return b.view(x, dims[:dim] + dims[dim + 1 :])


def repeat(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """repeat, expand: dimensions of size 1 that become larger; anything else is refused."""
    if node.target is einops.repeat:
        return b.emit("call_function", einops.repeat, (b.arg(node.args[0]), node.args[1]), dict(node.kwargs))
    x = b.arg(node.args[0])
    old, new = input_type(x), value_shape(node)
    old = ((),) * (len(new) - len(old)) + old
    grown = [i for i, (dim, size) in enumerate(zip(old, new, strict=True)) if axes.size(dim) != size]
    if any(old[i] for i in grown):
        raise b.refuse(f"repeat of {axes.show(old)} to {new} tiles an axis")
    if not grown and axes.size(old[0]) == 1 and not old[0] and rank(b, x) == 5 and new[0] == 1:
        grown = [0]  # a static image at a single time step
    if not grown:
        return b.view(x, old)
    names: list[str] = []
    for i, dim in enumerate(old):
        letter = dim[0].letter if len(dim) == 1 else f"n{i}" if dim else "1"
        names.append(f"{letter}{i}" if letter in names and dim else letter)
    source = [name for i, name in enumerate(names) if old[i]]
    target = [("t" if i == 0 else f"r{i}") if i in grown else name for i, name in enumerate(names)]
    squeezed = b.view(x, tuple(dim for dim in old if dim))
    sizes = {target[i]: new[i] for i in grown}
    return b.emit("call_function", einops.repeat, (squeezed, f"{' '.join(source)} -> {' '.join(target)}"), sizes)


def chunk(b: GraphBuilder, node: fx.Node) -> tuple[fx.Node, ...]:
    x, count, dim = call(b, node, "chunks", "dim", dim=0)
    dim = positive(b, x, dim)
    if axes.size(input_type(x)[dim]) % count:
        raise b.refuse(f"chunk({count}) of {axes.size(input_type(x)[dim])} elements is uneven")
    return tuple(b.emit("call_function", ops.take_block, (x, dim, i, count)) for i in range(count))


def split(b: GraphBuilder, node: fx.Node) -> tuple[fx.Node, ...]:
    x, sizes, dim = call(b, node, "split_size_or_sections", "dim", dim=0)
    dim = positive(b, x, dim)
    total = axes.size(input_type(x)[dim])
    each = {sizes} if isinstance(sizes, int) else set(sizes)
    if len(each) != 1 or total % min(each):
        raise b.refuse(f"split of {total} elements into {sizes} is uneven")
    count = total // min(each)
    return tuple(b.emit("call_function", ops.take_block, (x, dim, i, count)) for i in range(count))


def getitem(b: GraphBuilder, node: fx.Node) -> Any:
    """An entry of a tuple, or one position of a dimension: ``qkv[0]``, ``x[:, :, 1]``."""
    x, index = b.arg(node.args[0]), node.args[1]
    if isinstance(x, tuple):
        return x[index]  # type: ignore[index]
    entries = index if isinstance(index, tuple) else (index,)
    if all(e == slice(None) or isinstance(e, int) for e in entries):
        picks = [(i, e) for i, e in enumerate(entries) if isinstance(e, int)]
        for i, e in reversed(picks):
            dims = input_type(x)
            count = axes.size(dims[i])
            part = b.emit("call_function", ops.take_block, (x, i, e % count, count))
            dims = input_type(part)
            x = b.view(part, dims[:i] + dims[i + 1 :])
        return x
    raise b.refuse(f"indexing with {index} is not supported")


def unbind(b: GraphBuilder, node: fx.Node) -> tuple[fx.Node, ...]:
    x, dim = call(b, node, "dim", dim=0)
    dim = positive(b, x, dim)
    count = axes.size(input_type(x)[dim])
    parts = [b.emit("call_function", ops.take_block, (x, dim, i, count)) for i in range(count)]
    return tuple(b.view(p, d[:dim] + d[dim + 1 :]) for p in parts for d in [input_type(p)])


def pad(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Zeros around pixels."""
    x, sizes, mode, value = call(b, node, "pad", "mode", "value", mode="constant")
    sizes = tuple(sizes)
    while len(sizes) > 4 and sizes[-2:] == (0, 0):
        sizes = sizes[:-2]
    if mode != "constant" or value not in (None, 0) or len(sizes) not in (2, 4):
        raise b.refuse(f"padding by {sizes} ({mode}, {value}) is not supported; zeros around pixels are")
    return b.emit("call_module", b.layer("pad", torch.nn.ZeroPad2d((*sizes, 0, 0)[:4])), (x,))


def binary(target: Any) -> Handler:
    """Two tensors, or a tensor and a number; a number that changes nothing is left out."""
    neutral = 0 if target in (operator.add, operator.sub) else 1

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        args, kwargs = b.arg(node.args), b.arg(node.kwargs)
        left, right = (*args, *(kwargs[k] for k in ("input", "other") if k in kwargs))[:2]
        if kwargs.get("alpha", 1) != 1:
            raise b.refuse("alpha is not supported")
        if isinstance(left, fx.Node) and isinstance(right, int | float) and right == neutral:
            return left
        if isinstance(right, fx.Node) and isinstance(left, int | float) and left == neutral and target in COMMUTE:
            return right
        return b.emit("call_function", target, (left, right))

    return handler


def matmul(b: GraphBuilder, node: fx.Node) -> fx.Node:
    x, y = call(b, node, "other")
    return b.emit("call_function", torch.matmul, (x, y))


def reduction(target: Any) -> Handler:
    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        x, dim, keepdim = call(b, node, "dim", "keepdim", keepdim=False)
        dims = range(rank(b, x)) if dim is None else [dim] if isinstance(dim, int) else dim
        where = tuple(sorted(positive(b, x, i) for i in dims))
        return b.emit("call_function", target, (x,), {"dim": where, "keepdim": bool(keepdim)})

    return handler


def rearrange(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """The model uses einops itself: its pattern is typed like ours, and written as we write it."""
    x, pattern = b.arg(node.args[0]), str(node.args[1])
    bind_letters(input_type(x), pattern, node.kwargs)  # splits axes where the pattern does
    source = tokens(input_type(x))
    return emit_view(b.emit, x, source, follow(source, pattern, node.kwargs))


COMMUTE = (operator.add, operator.mul)
HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "ravel"), reshape),
    **dict.fromkeys(("contiguous", "clone", "detach", "dropout"), same),
    **dict.fromkeys(("to", "float", "type_as", "type"), cast),
    **dict.fromkeys(("transpose", "swapaxes"), transpose),
    "permute": permute,
    "getattr": attribute,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    **dict.fromkeys(("repeat", "expand"), repeat),
    "pad": pad,
    "chunk": chunk,
    "split": split,
    "getitem": getitem,
    "unbind": unbind,
    **dict.fromkeys(("add", "iadd"), binary(operator.add)),
    **dict.fromkeys(("sub", "isub"), binary(operator.sub)),
    **dict.fromkeys(("mul", "imul", "multiply"), binary(operator.mul)),
    **dict.fromkeys(("truediv", "div", "itruediv"), binary(operator.truediv)),
    **dict.fromkeys(("matmul", "bmm"), matmul),
    "mean": reduction(torch.mean),
    "sum": reduction(torch.sum),
    "rearrange": rearrange,
}
