"""ONNX form of products by Einstein's summation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import fx

from svitc.ir import axes
from svitc.ir.operators import products
from svitc.onnx import layout
from svitc.onnx.builder import Builder, Stored
from svitc.onnx.operators.emitter import Emitter
from svitc.onnx.operators.slicing import Rule, in_program_order, store


def einsum(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to Einsum."""
    attributes = {"equation": str(node.kwargs["equation"])}
    return store(b, node, lambda view: b.op("Einsum", in_program_order(b, node), view, attributes))  # type: ignore[arg-type]


def add_product(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to a product and an addition, each scaled unless its factor is 1."""
    x, y, z = in_program_order(b, node)
    view = layout.fresh(b.program.type_of(node))
    e = Emitter(b, view)
    product = e("MatMul", y, z)
    if node.kwargs["alpha"] != 1:
        product = e("Mul", product, float(node.kwargs["alpha"]))  # type: ignore[arg-type]
    if node.kwargs["beta"] != 1:
        x = e("Mul", x, float(node.kwargs["beta"]), dims=b.at(node.args[0]).view)  # type: ignore[arg-type]
    return b.store(e("Add", x, product), view)


def attention(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to two products with a softmax between them."""
    stored = [b.at(arg) for arg in node.args]
    query, key, value, *mask = (b.read(s, s.view) for s in stored)
    view = layout.fresh(b.program.type_of(node))
    turned = layout.fresh((*stored[1].view[:-2], stored[1].view[-1], stored[1].view[-2]))
    scores = layout.fresh((*stored[0].view[:-1], stored[1].view[-2]))
    last = len(view) - 1
    e = Emitter(b, scores)
    key = e("Transpose", key, attributes={"perm": [*range(last - 1), last, last - 1]}, dims=turned)
    x = e("Mul", e("MatMul", query, key), float(node.kwargs["scale"]))  # type: ignore[arg-type]
    if node.kwargs["causal"]:
        rows, columns = (axes.size(dim) for dim in scores[-2:])
        later = np.triu(np.full((rows, columns), -np.inf, np.float32), 1)
        x = e("Add", x, b.initializer("causal_mask", later))
    for bias in mask:
        x = e("Add", x, bias)
    weights = e("Softmax", x, attributes={"axis": last})
    return b.store(b.op("MatMul", [weights, value], view), view)


RULES: dict[Callable, Rule] = {
    products.einsum: einsum,
    products.add_product: add_product,
    products.attention: attention,
}
