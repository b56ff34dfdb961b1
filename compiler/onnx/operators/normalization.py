"""ONNX forms of the operators that normalize, compare or sum up elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import fx

from svitc.ir import axes
from svitc.ir.axes import Dims
from svitc.ir.operators import normalization
from svitc.onnx import layout
from svitc.onnx.builder import Builder, Stored
from svitc.onnx.operators.emitter import Emitter
from svitc.onnx.operators.slicing import Rule, in_program_order, store


def along(op_type: str, attribute: str = "axis") -> Rule:
    """Return the rule of an operator along one dimension."""

    def rule(b: Builder, node: fx.Node, _: None) -> Stored:
        attributes = {attribute: int(node.kwargs["dim"])}  # type: ignore[call-overload]
        return store(b, node, lambda view: b.op(op_type, in_program_order(b, node), view, attributes))

    return rule


def reduced(b: Builder, x: ir.Value, op_type: str, view: Dims, dims: Sequence[int], keep: bool) -> ir.Value:
    """Emit a reduction over some dimensions.

    Args:
        b: builder that the node is emitted to.
        x: the value.
        op_type: the ONNX operator.
        view: dimensions of the value.
        dims: those that are reduced.
        keep: whether they stay, with one element.
    """
    out = tuple(() if i in dims else dim for i, dim in enumerate(view) if keep or i not in dims)
    attributes = {} if keep else {"keepdims": 0}
    return b.op(op_type, [x, b.integers("axes", sorted(dims))], out, attributes, helper=op_type.lower())


def reduction(op_type: str) -> Rule:
    """Return the rule of an operator that leaves one element of some dimensions."""

    def rule(b: Builder, node: fx.Node, _: None) -> Stored:
        dims: Any = node.kwargs["dims"] if "dims" in node.kwargs else [node.kwargs["dim"]]
        source, keep = b.at(node.args[0]), bool(node.kwargs["keepdim"])
        x = b.read(source, source.view)
        view = layout.fresh(b.program.type_of(node))
        return b.store(reduced(b, x, op_type, source.view, dims, keep), view)

    return rule


def norm(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower a norm of order 1 or 2, or any other by powers."""
    order: Any = node.kwargs["order"]
    if order in (1, 2):
        return reduction(f"ReduceL{int(order)}")(b, node, None)
    dims: Any = node.kwargs["dims"]
    source = b.at(node.args[0])
    e = Emitter(b, source.view)
    powers = e("Pow", e("Abs", b.read(source, source.view)), order)
    view = layout.fresh(b.program.type_of(node))
    total = reduced(b, powers, "ReduceSum", source.view, dims, bool(node.kwargs["keepdim"]))
    return b.store(Emitter(b, view)("Pow", total, 1 / order), view)


def normalize(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to a division by the norm, which is at least ``eps``."""
    order, dim, eps = (node.kwargs[key] for key in ("order", "dim", "eps"))
    source = b.at(node.args[0])
    x, view = b.read(source, source.view), source.view
    e = Emitter(b, view)
    if order in (1, 2):
        length = reduced(b, x, f"ReduceL{int(order)}", view, [dim], True)  # type: ignore[arg-type, list-item]
    else:
        total = reduced(b, e("Pow", e("Abs", x), order), "ReduceSum", view, [dim], True)  # type: ignore[arg-type, list-item]
        length = e("Pow", total, 1 / order)  # type: ignore[operator]
    thin = tuple(() if i == dim else d for i, d in enumerate(view))
    return b.store(e("Div", x, Emitter(b, thin)("Max", length, eps)), view)  # type: ignore[arg-type]


def cosine_similarity(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to the sum of the products of both values, each divided by its norm, which is at least ``eps``."""
    dim, eps = int(node.kwargs["dim"]), float(node.kwargs["eps"])  # type: ignore[call-overload, arg-type]
    stored = [b.at(arg) for arg in node.args]
    units = []
    for source in stored:
        x, view = b.read(source, source.view), source.view
        thin = tuple(() if i == dim else d for i, d in enumerate(view))
        length = reduced(b, x, "ReduceL2", view, [dim], True)
        units.append(Emitter(b, view)("Div", x, Emitter(b, thin)("Max", length, eps)))
    both = tuple(p if axes.size(p) != 1 else q for p, q in zip(stored[0].view, stored[1].view, strict=True))
    products = Emitter(b, both)("Mul", *units)
    return b.store(reduced(b, products, "ReduceSum", both, [dim], False), layout.fresh(b.program.type_of(node)))


def variance(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to the mean of the squared differences from the mean."""
    dims: Any = node.kwargs["dims"]
    source = b.at(node.args[0])
    x, view = b.read(source, source.view), source.view
    e = Emitter(b, view)
    apart = e("Sub", x, reduced(b, x, "ReduceMean", view, dims, True))
    count = axes.size(axis for i in dims for axis in view[i])
    mean = reduced(b, e("Mul", apart, apart), "ReduceMean", view, dims, bool(node.kwargs["keepdim"]))
    out = layout.fresh(b.program.type_of(node))
    factor = count / max(1, count - int(node.kwargs["correction"]))  # type: ignore[call-overload]
    thin = Emitter(b, out)
    value = mean if factor == 1 else thin("Mul", mean, factor)
    return b.store(thin("Sqrt", value) if node.target is normalization.standard_deviation else value, out)


def layer_norm(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to LayerNormalization, with a scale of 1 where there is none."""
    source, *parameters = map(b.at, node.args)
    first = len(source.view) - int(node.kwargs["count"])  # type: ignore[call-overload]
    values = [b.read(p, p.view) for p in parameters]
    if not values:
        values = [b.initializer("ones", np.ones(axes.shape(source.view[first:]), np.float32))]
    attributes = {"axis": first, "epsilon": float(node.kwargs["eps"])}  # type: ignore[arg-type]
    return store(
        b, node, lambda view: b.op("LayerNormalization", [b.read(source, source.view), *values], view, attributes)
    )


def standardized(b: Builder, x: ir.Value, dims: Dims, over: Sequence[int], eps: float, center: bool = True) -> ir.Value:
    """Emit ``(x - mean) / sqrt(variance + eps)`` over some dimensions; without the mean if not ``center``."""
    e = Emitter(b, dims)
    apart = e("Sub", x, reduced(b, x, "ReduceMean", dims, over, True)) if center else x
    mean = reduced(b, e("Mul", apart, apart), "ReduceMean", dims, over, True)
    thin = Emitter(b, tuple(() if i in over else dim for i, dim in enumerate(dims)))
    return e("Div", apart, thin("Sqrt", thin("Add", mean, eps)))


def rms_norm(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to a division by the root of the mean of the squares."""
    source, *parameters = map(b.at, node.args)
    first = len(source.view) - int(node.kwargs["count"])  # type: ignore[call-overload]
    x, over = b.read(source, source.view), range(first, len(source.view))
    y = standardized(b, x, source.view, over, float(node.kwargs["eps"]), center=False)  # type: ignore[arg-type]
    for parameter in parameters:
        y = Emitter(b, source.view)("Mul", y, b.read(parameter, parameter.view))
    return b.store(y, source.view)


def group_norm(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower a group or instance norm to operators that every opset has."""
    source, *parameters = map(b.at, node.args)
    view = layout.fresh(b.program.type_of(node))
    groups = int(node.kwargs.get("groups", axes.size(view[1])))  # type: ignore[call-overload]
    rest = axes.size(axis for dim in view[1:] for axis in dim) // groups
    grouped = (
        view[0],
        (axes.Axis("group", groups, axes.Kind.CHANNEL, "g"),),
        (axes.Axis("rest", rest, axes.Kind.PIXEL, "n"),),
    )
    shape = b.integers("shape", [0, groups, -1])
    x = b.op("Reshape", [b.read(source, source.view), shape], grouped, helper="grouped")
    y = standardized(b, x, grouped, [2], float(node.kwargs["eps"]))  # type: ignore[arg-type]
    sizes = [-1, *axes.shape(view)[1:]]
    y = b.op("Reshape", [y, b.integers("shape", sizes)], view, helper="ungrouped")
    for op_type, parameter in zip(("Mul", "Add"), parameters, strict=False):
        column = (*parameter.view, *((),) * (len(view) - 2))
        y = Emitter(b, view)(op_type, y, b.read(parameter, column))
    return b.store(y, view)


def cumulative_sum(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to CumSum."""
    axis = b.initializer("axis", np.array(node.kwargs["dim"], np.int64))
    return store(b, node, lambda view: b.op("CumSum", [*in_program_order(b, node), axis], view))


RULES: dict[Callable, Rule] = {
    normalization.softmax: along("Softmax"),
    normalization.log_softmax: along("LogSoftmax"),
    normalization.layer_norm: layer_norm,
    normalization.rms_norm: rms_norm,
    normalization.group_norm: group_norm,
    normalization.instance_norm: group_norm,
    normalization.normalize: normalize,
    normalization.norm: norm,
    normalization.cosine_similarity: cosine_similarity,
    **dict.fromkeys((normalization.variance, normalization.standard_deviation), variance),
    normalization.largest: reduction("ReduceMax"),
    normalization.smallest: reduction("ReduceMin"),
    normalization.product: reduction("ReduceProd"),
    normalization.log_sum_exp: reduction("ReduceLogSumExp"),
    normalization.cumulative_sum: cumulative_sum,
}
