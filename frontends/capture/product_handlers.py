"""Handlers of products: einsum, addmm, attention, and matrix products of tensors of different ranks."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from svitc.frontends.capture.graph_builder import GraphBuilder, Value
from svitc.frontends.capture.handler_arguments import call, rank
from svitc.ir.graph import input_type
from svitc.ir.operators import normalization, products

Handler = Callable[[GraphBuilder, fx.Node], Value]


def einsum(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a product by Einstein's summation, with its result spelled out."""
    equation, *tensors = b.arg(node.args)
    if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
        tensors = list(tensors[0])
    equation = str(equation).replace(" ", "")
    left, arrow, right = equation.partition("->")
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    operands = left.split(",")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in left]
    widths = [rank(x) - len(part.replace("...", "")) for x, part in zip(tensors, operands, strict=True)]
    widest = max([0, *(w for w, part in zip(widths, operands, strict=True) if "..." in part)])
    names = "".join(spare[:widest])
    operands = [part.replace("...", names[widest - w :]) for w, part in zip(widths, operands, strict=True)]
    right = right.replace("...", names)
    return b.emit("call_function", products.einsum, tuple(tensors), {"equation": f"{','.join(operands)}->{right}"})


def addmm(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``beta * x + alpha * (y @ z)``."""
    x, y, z, beta, alpha = call(b, node, "mat1", "mat2", "beta", "alpha", beta=1, alpha=1)
    product = b.emit("call_function", torch.matmul, (y, z))
    if alpha != 1:
        product = b.emit("call_function", operator.mul, (product, alpha))
    if beta != 1:
        x = b.emit("call_function", operator.mul, (x, beta))
    return b.emit("call_function", operator.add, (x, product))


def matmul(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a matrix product; where the ranks differ, as a product by Einstein's summation."""
    x, y = call(b, node, "mat2" if "mat2" in node.kwargs else "other")
    first, second = rank(x), rank(y)
    if first == second and first >= 2:
        return b.emit("call_function", torch.matmul, (x, y))
    letters = "abcdefgh"
    wide = max(first, second)
    if min(first, second) == 1 or wide > 8:
        vector_right = second == 1
        inner = letters[: max(first, second) - (1 if vector_right else 2)]
        left, right = (inner + "k", "k") if vector_right else ("k", inner + "kn")
        equation = f"{left},{right}->{inner if vector_right else inner + 'n'}"
        return b.emit("call_function", products.einsum, (x, y), {"equation": equation})
    lead = letters[: wide - 2]
    left = (lead if first == wide else lead[wide - first :]) + "mk"
    right = (lead if second == wide else lead[wide - second :]) + "kn"
    return b.emit("call_function", products.einsum, (x, y), {"equation": f"{left},{right}->{lead}mn"})


def attention(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit scaled dot-product attention as two products and a softmax."""
    names = ("key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    kwargs: dict[str, Any] = {"input" if k == "query" else k: v for k, v in node.kwargs.items()}
    node.kwargs = kwargs
    q, k, v, mask, _, causal, scale, shared = call(b, node, *names, is_causal=False, enable_gqa=False)
    if causal or shared:
        raise b.refuse("causal attention, and attention whose heads share keys, is not supported")
    order = [*range(rank(k) - 2), rank(k) - 1, rank(k) - 2]
    width = math.prod(axis.size for axis in input_type(q)[-1])
    scores = b.emit("call_function", torch.matmul, (q, b.permute(k, order)))
    scores = b.emit("call_function", operator.mul, (scores, width**-0.5 if scale is None else float(scale)))
    if mask is not None:
        scores = b.emit("call_function", operator.add, (scores, mask))
    weights = b.emit("call_function", normalization.softmax, (scores,), {"dim": rank(scores) - 1})
    return b.emit("call_function", torch.matmul, (weights, v))


PRODUCT_HANDLERS: dict[str, Handler] = {
    "einsum": einsum,
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "dot"), matmul),
    "scaled_dot_product_attention": attention,
}
