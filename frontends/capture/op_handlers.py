"""Handlers of raw operations, by the name that a model calls them by. A handler emits canonical operations.

A handler takes the graph builder and the raw node, and returns the node, or tuple of nodes, that this becomes. To
support another operation, write its handler and name it in ``HANDLERS``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import fx
from torch.fx.node import Argument, Target

from svitc.frontends.capture.advice import advice
from svitc.frontends.capture.elementwise_handlers import ELEMENTWISE_HANDLERS, operands
from svitc.frontends.capture.graph_builder import GraphBuilder, Value
from svitc.frontends.capture.handler_arguments import call, dims_of, positive, rank, spelled_out, value_shape, variadic
from svitc.frontends.capture.normalization_handlers import NORMALIZATION_HANDLERS
from svitc.frontends.capture.product_handlers import PRODUCT_HANDLERS
from svitc.frontends.capture.resampling_handlers import RESAMPLING_HANDLERS
from svitc.frontends.capture.selection_handlers import SELECTION_HANDLERS, Ordered, extreme_along
from svitc.frontends.capture.slicing_handlers import SLICING_HANDLERS
from svitc.frontends.capture.structure_handlers import STRUCTURE_HANDLERS
from svitc.ir import axes, ops
from svitc.ir.einops_pattern import bind_letters
from svitc.ir.graph import input_type
from svitc.ir.operators import normalization, pointwise, several
from svitc.ir.views import emit_view, follow, tokens

Handler = Callable[[GraphBuilder, fx.Node], Value]


def reshape(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit reshape, view, flatten and unflatten, whose recorded shape determines the axes."""
    return b.reshape(b.arg(node.args[0]), value_shape(node))


def same(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Leave out contiguous, clone and detach, which do not change a value."""
    return b.arg(node.args[0])


def cast(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Leave out a cast that changes no value: between floats, and from truth values, which are 0 and 1 here.

    A cast of a float to integers cuts off its fraction; to a truth value, it tells whether the float is not 0.
    """
    x = node.args[0]
    assert isinstance(x, fx.Node)
    before, after = x.meta["val"].dtype, node.meta["val"].dtype
    narrows = {before, after} & {torch.float16, torch.bfloat16}
    if before == after or (not narrows and (before == torch.bool or after.is_floating_point)):
        return b.arg(x)
    if before.is_floating_point and not narrows and after != torch.bool:
        return b.emit("call_function", pointwise.truncate, (b.arg(x),))
    if before.is_floating_point and not narrows:
        size = b.emit("call_function", pointwise.absolute, (b.arg(x),))
        return b.emit("call_module", b.layer("step", ops.Step(0.0, True)), (size,))
    raise b.refuse(f"a cast from {before} to {after} is not supported", hint=advice("half"))


def transpose(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a transposition as a permutation."""
    x, *dims = call(b, node, "dim0", "dim1")
    order = list(range(rank(x)))
    first, second = (positive(x, dim) for dim in dims)
    order[first], order[second] = order[second], order[first]
    return b.permute(x, order)


def permute(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a permutation of dimensions."""
    x, order = variadic(b, node, "dims")
    return b.permute(x, [positive(x, i) for i in order])


def attribute(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``x.T``, ``x.mT`` and ``x.data``, attributes that a proxy does not answer by itself."""
    x, name = b.arg(node.args[0]), node.args[1]
    if isinstance(x, Ordered) and name in x.NAMES:
        return x[x.NAMES.index(str(name))]
    if isinstance(x, tuple):
        raise b.refuse(f"{name} of a result of several values is not supported")
    order = list(range(rank(x)))
    if name == "data":
        return x
    if name == "T" or (name == "mT" and len(order) > 1):
        return b.permute(x, order[::-1] if name == "T" else [*order[:-2], order[-1], order[-2]])
    raise b.refuse(f"a tensor's {name} is not an operation that svitc can represent", hint=advice(str(name)))


def channel_shuffle(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a shuffle of groups of channels as a transposition of groups and channels."""
    x, groups = call(b, node, "groups")
    sizes = axes.shape(input_type(x))
    split = b.reshape(x, (sizes[0], groups, sizes[1] // groups, *sizes[2:]))
    return b.reshape(b.permute(split, [0, 2, 1, *range(3, len(sizes) + 1)]), sizes)


def unsqueeze(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a new dimension of size 1."""
    x, dim = call(b, node, "dim")
    dim = positive(x, dim, extra=1)
    dims = input_type(x)
    return b.view(x, (*dims[:dim], (), *dims[dim:]))


def squeeze(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit the removal of a dimension of size 1; a larger one stays."""
    x, dim = call(b, node, "dim")
    dims = input_type(x)
    if dim is None:
        note = f"squeeze() keeps the batch where it is a single image, too (line {node.meta.get('source')})"
        b.program.info.setdefault("assumptions", []).append(note)
        return b.view(x, tuple(d for d in dims if axes.size(d) != 1))
    dim = positive(x, dim)
    if axes.size(dims[dim]) != 1:
        return x
    return b.view(x, dims[:dim] + dims[dim + 1 :])


def binary(target: Target) -> Handler:
    """Return a handler of two tensors, or a tensor and a number; it leaves out a number that changes nothing."""
    neutral = 0 if target in (operator.add, operator.sub) else 1

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        left, right = operands(b, node)
        alpha = node.kwargs.get("alpha", 1)
        if alpha != 1:
            right = (
                b.emit("call_function", operator.mul, (right, alpha)) if isinstance(right, fx.Node) else right * alpha
            )  # type: ignore[operator]
        if isinstance(left, fx.Node) and isinstance(right, int | float) and right == neutral:
            return left
        if isinstance(right, fx.Node) and isinstance(left, int | float) and left == neutral and target in COMMUTE:
            return right
        if isinstance(left, fx.Node) and isinstance(right, fx.Node):
            return b.emit("call_function", several.divide if target is operator.truediv else target, (left, right))
        if isinstance(left, fx.Node) and target not in (operator.add, operator.sub):
            return b.emit("call_function", target, (left, right))
        if isinstance(left, fx.Node):
            signed = right if target is operator.add else -right
            return b.emit("call_function", pointwise.add_number, (left,), {"number": signed})
        return b.emit("call_function", *number_first(target, left, right))

    return handler


def number_first(target: Target, number: float, x: fx.Node) -> tuple[Target, tuple, dict[str, Argument]]:
    """Return function, arguments and attributes of an operation of a number and a tensor, in this order."""
    if target is operator.mul:
        return target, (number, x), {}
    operators = {
        operator.add: pointwise.add_number,
        operator.sub: pointwise.subtract_from,
        operator.truediv: pointwise.divide_number,
    }
    return operators[target], (x,), {"number": number}  # type: ignore[index]


def reversed_subtraction(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``torch.rsub(x, y)``, which is ``y - x``."""
    x, y = operands(b, node)
    if isinstance(y, fx.Node):
        return b.emit("call_function", operator.sub, (y, x))
    return b.emit("call_function", pointwise.subtract_from, (x,), {"number": y})


def reduction(target: Target) -> Handler:
    """Return a handler of a reduction over dimensions."""

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        x, dim, keepdim = call(b, node, "dim", "keepdim", keepdim=False)
        return b.emit("call_function", target, (x,), {"dim": dims_of(x, dim), "keepdim": bool(keepdim)})

    return handler


def rearrange(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a rearrange that the model calls itself, with its pattern in canonical letters."""
    x = b.arg(node.args[0])
    pattern = spelled_out(str(node.args[1]), rank(x))
    bind_letters(input_type(x), pattern, node.kwargs)  # splits axes as the pattern does
    source = tokens(input_type(x))
    return emit_view(b.emit, x, source, follow(source, pattern, node.kwargs))


COMMUTE = (operator.add, operator.mul)
HANDLERS: dict[str, Handler] = {
    **ELEMENTWISE_HANDLERS,
    **SLICING_HANDLERS,
    **STRUCTURE_HANDLERS,
    **NORMALIZATION_HANDLERS,
    **RESAMPLING_HANDLERS,
    **PRODUCT_HANDLERS,
    **SELECTION_HANDLERS,
    "max": extreme_along(normalization.largest, ELEMENTWISE_HANDLERS["maximum"]),
    "min": extreme_along(normalization.smallest, ELEMENTWISE_HANDLERS["minimum"]),
    "rsub": reversed_subtraction,
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "ravel"), reshape),
    **dict.fromkeys(("contiguous", "clone", "detach", "dropout"), same),
    **dict.fromkeys(("to", "float", "double", "type_as", "type", "int", "long", "bool"), cast),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), transpose),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
    "permute": permute,
    "getattr": attribute,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    **dict.fromkeys(("add", "iadd"), binary(operator.add)),
    **dict.fromkeys(("sub", "isub"), binary(operator.sub)),
    **dict.fromkeys(("mul", "imul", "multiply"), binary(operator.mul)),
    **dict.fromkeys(("truediv", "div", "itruediv"), binary(operator.truediv)),
    "mean": reduction(torch.mean),
    "sum": reduction(torch.sum),
    "rearrange": rearrange,
}
