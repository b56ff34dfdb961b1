"""ONNX form of products by Einstein's summation."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from svitc.ir.operators import products
from svitc.onnx.builder import Builder, Stored
from svitc.onnx.operators.slicing import Rule, in_program_order, store


def einsum(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to Einsum."""
    attributes = {"equation": str(node.kwargs["equation"])}
    return store(b, node, lambda view: b.op("Einsum", in_program_order(b, node), view, attributes))  # type: ignore[arg-type]


RULES: dict[Callable, Rule] = {products.einsum: einsum}
