"""Operators that normalize, compare or sum up the elements along some dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from svitc.ir import axes
from svitc.ir.axes import AxisConflict, Dims, Kind
from svitc.ir.graph import input_type
from svitc.ir.operators.broadcasting import adopt_kinds, broadcast_rule
from svitc.ir.operators.slicing import ACROSS_BATCH, index_of
from svitc.ir.operators.table import Operator, are, is_flag, is_index, is_number

REASON = "all of them together are normalized or compared"


def softmax(x, dim):
    return torch.softmax(x, dim)


def log_softmax(x, dim):
    return torch.log_softmax(x, dim)


def layer_norm(x, *parameters, count, eps):
    return torch.nn.functional.layer_norm(x, x.shape[-count:], *parameters, eps=eps)


def rms_norm(x, *parameters, count, eps):
    return torch.nn.functional.rms_norm(x, x.shape[-count:], *parameters, eps=eps)


def group_norm(x, *parameters, groups, eps):
    return torch.nn.functional.group_norm(x, groups, *parameters, eps=eps)


def instance_norm(x, *parameters, eps):
    return torch.nn.functional.instance_norm(x, None, None, *parameters, eps=eps)


def normalize(x, order, dim, eps):
    return torch.nn.functional.normalize(x, order, dim, eps)


def cosine_similarity(x, y, dim, eps):
    return torch.nn.functional.cosine_similarity(x, y, dim, eps)


def similarity_bound(x, y, dim, eps):
    return torch.ones_like(torch.broadcast_tensors(x, y)[0].amax(dim))


def norm(x, order, dims, keepdim):
    return torch.linalg.vector_norm(x, order, dims, keepdim)


def variance(x, dims, correction, keepdim):
    return torch.var(x, dims, correction=correction, keepdim=keepdim)


def standard_deviation(x, dims, correction, keepdim):
    return torch.std(x, dims, correction=correction, keepdim=keepdim)


def largest(x, dims, keepdim):
    return torch.amax(x, dims, keepdim)


def smallest(x, dims, keepdim):
    return torch.amin(x, dims, keepdim)


def product(x, dim, keepdim):
    return torch.prod(x, dim, keepdim)


def log_sum_exp(x, dims, keepdim):
    return torch.logsumexp(x, dims, keepdim)


def cumulative_sum(x, dim):
    return torch.cumsum(x, dim)


def freeze_all(x: Dims, dims: Sequence[int]) -> None:
    """Freeze the channels of some dimensions. Raises AxisConflict if the batch is among them."""
    for dim in dims:
        if dim >= len(x):
            raise AxisConflict(f"there is no dimension {dim} in {axes.show(x)}")
        for axis in x[dim]:
            if axis.kind == Kind.BATCH:
                raise AxisConflict(ACROSS_BATCH)
            if axis.kind == Kind.CHANNEL:
                axis.freeze(REASON)


def along_rule(node: fx.Node) -> Dims:
    """Return the type of an operation along dimension ``dim``, which is that of its input."""
    x = input_type(node.args[0])
    freeze_all(x, [index_of(node, "dim")])
    return x


def similarity_rule(node: fx.Node) -> Dims:
    """Return the type of the cosine of the angle between two values along one dimension, which is gone then."""
    x, y = node.args
    dim = index_of(node, "dim")
    if len(input_type(x)) != len(input_type(y)):
        raise AxisConflict(f"{axes.show(input_type(y))} has not the dimensions of {axes.show(input_type(x))}")
    freeze_all(input_type(x), [dim])
    freeze_all(input_type(y), [dim])
    both = broadcast_rule(node)
    return (*both[:dim], *both[dim + 1 :])


def reduced_rule(node: fx.Node) -> Dims:
    """Return the type of an operation that leaves one element of each of ``dims``, or of ``dim``."""
    x, keep = input_type(node.args[0]), node.kwargs["keepdim"]
    dims: Any = node.kwargs["dims"] if "dims" in node.kwargs else [node.kwargs["dim"]]
    freeze_all(x, dims)
    return tuple(() if i in dims else dim for i, dim in enumerate(x) if keep or i not in dims)


def last_rule(node: fx.Node) -> Dims:
    """Return the type of a normalization over the last ``count`` dimensions; its parameters have these, too."""
    x, count = input_type(node.args[0]), node.kwargs["count"]
    if not 0 < count <= len(x):  # type: ignore[operator]
        raise AxisConflict(f"the last {count} of the dimensions of {axes.show(x)} are not there")
    freeze_all(x, range(len(x) - count, len(x)))  # type: ignore[operator]
    _meet(node, x[len(x) - count :])  # type: ignore[operator]
    return x


def channel_rule(node: fx.Node) -> Dims:
    """Return the type of a normalization of pixels and perhaps groups of channels; its parameters are by channel."""
    x = input_type(node.args[0])
    if len(x) < 3 or axes.size(x[1]) % int(node.kwargs.get("groups", 1)):  # type: ignore[call-overload]
        raise AxisConflict(f"{axes.show(x)} does not have channels in its dimension 1 that make equal groups")
    freeze_all(x, range(1, len(x)) if "groups" in node.kwargs else range(2, len(x)))
    _meet(node, (x[1],))
    return x


def _meet(node: fx.Node, dims: Dims) -> None:
    """Make the dimensions of a normalization's parameters identical to those that they scale."""
    for parameter in node.args[1:]:
        adopt_kinds(parameter, dims)  # type: ignore[arg-type]
        own = input_type(parameter)
        if len(own) != len(dims):
            raise AxisConflict(f"a parameter {axes.show(own)} does not fit {axes.show(dims)}")
        for p, q in zip(own, dims, strict=True):
            axes.unify(p, q)


_DIMS = {"dims": are(is_index), "keepdim": is_flag}
_EPS = {"eps": is_number}
NORMALIZATION = (
    Operator(softmax, along_rule, "softmax", {"dim": is_index}, fills=True, lipschitz=1.0),
    Operator(log_softmax, along_rule, "log_softmax", {"dim": is_index}, fills=True),
    Operator(layer_norm, last_rule, "layer_norm, nn.LayerNorm", {"count": is_index} | _EPS, (1, 3), fills=True),
    Operator(rms_norm, last_rule, "rms_norm, nn.RMSNorm", {"count": is_index} | _EPS, (1, 2), fills=True),
    Operator(group_norm, channel_rule, "group_norm, nn.GroupNorm", {"groups": is_index} | _EPS, (1, 3), fills=True),
    Operator(instance_norm, channel_rule, "instance_norm, nn.InstanceNorm1d to 3d", _EPS, (1, 3), fills=True),
    Operator(normalize, along_rule, "normalize", {"order": is_number, "dim": is_index} | _EPS, fills=False),
    Operator(
        cosine_similarity,
        similarity_rule,
        "cosine_similarity, nn.CosineSimilarity",
        {"dim": is_index} | _EPS,
        (2, 2),
        fills=False,
        terms=lambda node: axes.size(input_type(node.args[0])[int(node.kwargs["dim"])]),  # type: ignore[call-overload]
        bound=similarity_bound,
    ),
    Operator(norm, reduced_rule, "norm", {"order": is_number} | _DIMS, fills=True),
    Operator(variance, reduced_rule, "var", {"correction": is_index} | _DIMS, fills=True),
    Operator(standard_deviation, reduced_rule, "std", {"correction": is_index} | _DIMS, fills=True),
    Operator(largest, reduced_rule, "amax, max(dim).values", _DIMS, fills=True, same_bits=True, lipschitz=1.0),
    Operator(smallest, reduced_rule, "amin, min(dim).values", _DIMS, fills=True, same_bits=True, lipschitz=1.0),
    Operator(product, reduced_rule, "prod", {"dim": is_index, "keepdim": is_flag}, fills=True),
    Operator(log_sum_exp, reduced_rule, "logsumexp", _DIMS, fills=True),
    Operator(cumulative_sum, along_rule, "cumsum", {"dim": is_index}, fills=False, linear=True),
)
