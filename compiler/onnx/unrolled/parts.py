"""Rules for parts of a dimension: equal blocks, ranges, and single time steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir
from torch import fx

from svitc.errors import InternalError
from svitc.ir import ops
from svitc.ir.axes import Dim, Kind, size
from svitc.onnx import layout
from svitc.onnx.builder import FLOAT
from svitc.onnx.unrolled.builder import UnrolledBuilder
from svitc.onnx.unrolled.steps import Steps, timeless


def block(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    """Lower one of the equal blocks of a dimension."""
    source, dim, index, count = node.args
    assert isinstance(dim, int) and isinstance(count, int) and isinstance(index, int)
    x = b.of(source)
    if any(token.kind == Kind.TIME for token in x.view[dim]):
        return _some_steps(x, dim, index, count)
    rest = layout.blocks(timeless(x.view)[dim], count)
    return _parts(b, node, dim, [rest] * count, index, [size(rest)] * count)


def _some_steps(x: Steps, dim: int, index: int, count: int) -> Steps:
    """Return one of ``count`` equal parts of the steps of a value, whose dimension ``dim`` is time alone."""
    rest = layout.blocks(x.view[dim], count)
    steps = size(rest)
    values = x.values if x.static else x.values[index * steps : (index + 1) * steps]
    return replace(x, values=values, view=(*x.view[:dim], rest, *x.view[dim + 1 :]), time_order=None)


def part(b: UnrolledBuilder, node: fx.Node, _: None) -> Steps:
    """Lower a range of a dimension; the ranges together must cover it."""
    source, dim = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(dim, int)
    users = sorted((u for u in source.users if u.target is ops.take_range), key=lambda u: int(u.args[2]))  # type: ignore[arg-type]
    widths = [int(u.args[3]) - int(u.args[2]) for u in users]  # type: ignore[arg-type]
    key = ("rests", source, dim)
    if key not in b.cache:
        b.cache[key] = [layout.fresh(b.program.type_of(u))[dim] for u in users]
    return _parts(b, node, dim, b.cache[key], users.index(node), widths)


def _parts(
    b: UnrolledBuilder, node: fx.Node, dim: int, rests: Sequence[Dim], index: int, widths: Sequence[int]
) -> Steps:
    """Lower one of the parts of a dimension; at each step one Split gives all of them.

    Args:
        b: builder that the nodes are emitted to.
        node: the part to return; its first argument is the tensor that is split.
        dim: the dimension that is split.
        rests: tokens that remain of the dimension in each part.
        index: which part ``node`` is.
        widths: size of each part.
    """
    x = b.of(node.args[0])
    divided = timeless(x.view)[dim]
    if sum(widths) != size(divided):
        raise InternalError(f"{b.name}: the ranges of {node.args[0]} do not cover its dimension {dim} exactly")
    # a dimension that is stored separately is split in place; any other is moved to the end first
    if divided in x.dims:
        dims = x.dims
    else:
        dims = (tuple(token for d in x.dims for token in d if token not in divided), divided)
    axis = dims.index(divided)
    outs = [(*dims[:axis], rest, *dims[axis + 1 :]) for rest in rests]

    def emit(t: int) -> ir.Value:
        key = ("parts", node.args[0], dim, t)
        if key not in b.cache:
            inputs = [b.read_step(x, t, dims, x.dtype), b.integers("split", widths)]
            b.cache[key] = b.ops("Split", inputs, outs, {"axis": axis}, helper="split", dtype=x.dtype)
        return b.cache[key][index]

    if x.dtype == FLOAT and x.unit != 1:
        raise InternalError(f"{b.name}: floats with a unit")
    view = (*x.view[:dim], rests[index], *x.view[dim + 1 :])
    return replace(x, values=b.per_step(len(x.values), emit), dims=outs[index], view=view)


__all__ = ["block", "part"]
