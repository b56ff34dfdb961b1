"""Handlers of products: einsum, addmm, attention, and matrix products of tensors of different ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from svitc.frontends.capture.graph_builder import GraphBuilder, Value, unused_name
from svitc.frontends.capture.handler_arguments import call, positive, rank
from svitc.ir import axes
from svitc.ir.axes import Kind
from svitc.ir.graph import attribute_of, input_type
from svitc.ir.operators import products, time

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
    tensors = list(tensors)
    for i, part in enumerate(operands):  # a dimension of size 1 that is broadcast has no letter
        dims = input_type(tensors[i])
        thin = [j for j, c in enumerate(part) if axes.size(dims[j]) == 1 and _is_wider(c, i, operands, tensors)]
        tensors[i] = b.view(tensors[i], tuple(dim for j, dim in enumerate(dims) if j not in thin))
        operands[i] = "".join(c for j, c in enumerate(part) if j not in thin)
    return b.emit("call_function", products.einsum, tuple(tensors), {"equation": f"{','.join(operands)}->{right}"})


def _is_wider(letter: str, operand: int, operands: list[str], tensors: list[fx.Node]) -> bool:
    """Return whether a letter stands for more than one element in an operand other than this one."""
    others = [(part, x) for i, (part, x) in enumerate(zip(operands, tensors, strict=True)) if i != operand]
    return any(letter in part and axes.size(input_type(x)[part.index(letter)]) > 1 for part, x in others)


def addmm(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``beta * x + alpha * (y @ z)``; where ``z`` has time first, all time steps mixed by the weights ``y``."""
    second, third = ("mat1", "mat2") if str(getattr(node.target, "__name__", node.target)) == "addmm" else _BATCHED
    x, y, z, beta, alpha = call(b, node, second, third, "beta", "alpha", beta=1, alpha=1)
    parameters = all(isinstance(arg, fx.Node) and arg.op == "get_attr" for arg in (x, y))
    if parameters and beta == alpha == 1 and [axis.kind for axis in input_type(z)[0]] == [Kind.TIME]:
        return b.emit("call_function", time.mix_steps, (z, y, x))
    return b.emit("call_function", products.add_product, (x, y, z), {"beta": beta, "alpha": alpha})


_BATCHED = ("batch1", "batch2")


def tensordot(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a product that sums over several dimensions as a product of matrices, as torch does."""
    x, y, dims = call(b, node, "b" if "b" in node.kwargs else "other", "dims", dims=2)
    if isinstance(dims, int):
        dims = (range(rank(x) - dims, rank(x)), range(dims))
    inner = [[positive(tensor, i) for i in at] for tensor, at in zip((x, y), dims, strict=True)]
    outer = [[i for i in range(rank(tensor)) if i not in at] for tensor, at in zip((x, y), inner, strict=True)]
    left, right = b.permute(x, [*outer[0], *inner[0]]), b.permute(y, [*inner[1], *outer[1]])
    kept = [[input_type(tensor)[i] for i in at] for tensor, at in zip((x, y), outer, strict=True)]
    summed = [tuple(axis for i in at for axis in input_type(t)[i]) for t, at in zip((x, y), inner, strict=True)]
    rows, columns = (tuple(axis for dim in dims for axis in dim) for dims in kept)
    product = b.emit(
        "call_function", torch.matmul, (b.view(left, (rows, summed[0])), b.view(right, (summed[1], columns)))
    )
    merged = input_type(product)
    split = axes.factor((merged[0],), [axes.size(dim) for dim in kept[0]])
    return b.view(product, (*split, *axes.factor((merged[1],), [axes.size(dim) for dim in kept[1]])))


def matmul(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a matrix product; where the ranks differ, as a product by Einstein's summation."""
    x, y = call(b, node, "mat2" if "mat2" in node.kwargs else "other")
    first, second = rank(x), rank(y)
    sizes = [axes.shape(input_type(v))[:-2] for v in (x, y)]
    if first == second and first >= 2 and sizes[0] == sizes[1]:
        return b.emit("call_function", torch.matmul, (x, y))
    letters = "abcdefgh"
    wide = max(first, second)
    if first == second:
        return repeated_matmul(b, x, y)
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


def repeated_matmul(b: GraphBuilder, x: fx.Node, y: fx.Node) -> fx.Node:
    """Emit a product of matrices of which some serve several others: those that have size 1 along a dimension."""
    letters = "abcdefgh"[: rank(x) - 2]
    thin, parts = [], []
    for tensor, inner in ((x, "mk"), (y, "kn")):
        dims = input_type(tensor)
        kept = [i for i in range(len(letters)) if axes.size(dims[i]) != 1]
        thin.append(b.view(tensor, (*(dims[i] for i in kept), *dims[-2:])))
        parts.append("".join(letters[i] for i in kept) + inner)
    out = "".join(c for c in letters if c in parts[0] + parts[1])
    equation = f"{parts[0]},{parts[1]}->{out}mn"
    product = b.emit("call_function", products.einsum, tuple(thin), {"equation": equation})
    places = iter(input_type(product))
    lead = tuple(next(places) if c in out else () for c in letters)
    return b.view(product, (*lead, *places))


def attention(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit scaled dot-product attention as two products and a softmax."""
    names = ("key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    kwargs: dict[str, Any] = {"input" if k == "query" else k: v for k, v in node.kwargs.items()}
    node.kwargs = kwargs
    q, k, v, mask, _, causal, scale, shared = call(b, node, *names, is_causal=False, enable_gqa=False)
    if shared:
        raise b.refuse("attention whose heads share keys is not supported", hint="Repeat them with repeat_interleave.")
    if q.op == "get_attr" or k.op == "get_attr" or v.op == "get_attr":
        raise b.refuse(
            "attention of a parameter is not supported", hint="Write softmax(q @ k.transpose(-1, -2) * scale) @ v."
        )
    width = axes.size(input_type(q)[-1])
    attributes = {"causal": bool(causal), "scale": width**-0.5 if scale is None else float(scale)}
    masks = () if mask is None else (additive(b, mask),)
    return b.emit("call_function", products.attention, (q, k, v, *masks), attributes)


def additive(b: GraphBuilder, mask: fx.Node) -> fx.Node:
    """Return a mask that is added to the products of queries and keys, for one that says which of them count."""
    if mask.op != "get_attr":
        return mask
    values = attribute_of(b.program.module, str(mask.target))
    if values.dtype != torch.bool:
        return mask
    owner, _, name = str(mask.target).rpartition(".")
    holder = b.program.module.get_submodule(owner)
    name = unused_name(holder, f"{name}_added")
    holder.register_buffer(name, torch.zeros(values.shape).masked_fill(~values, torch.finfo(torch.float32).min))
    return b.emit("get_attr", f"{owner}.{name}".lstrip("."))


PRODUCT_HANDLERS: dict[str, Handler] = {
    "einsum": einsum,
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    "tensordot": tensordot,
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "dot"), matmul),
    "scaled_dot_product_attention": attention,
}
