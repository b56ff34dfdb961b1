"""Handlers of calls that normalize, compare or sum up elements, and of the layers that do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from svitc.frontends.capture.graph_builder import GraphBuilder, Value
from svitc.frontends.capture.handler_arguments import call, dims_of, positive
from svitc.ir.operators import normalization, pointwise

Handler = Callable[[GraphBuilder, fx.Node], Value]
LayerHandler = Callable[[GraphBuilder, str, Any, fx.Node], fx.Node]  # builder, path, layer, input


def along(target: Callable) -> Handler:
    """Return a handler of an operator along one dimension."""

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        kwargs = {k: v for k, v in node.kwargs.items() if k not in ("_stacklevel", "dtype")}
        node.kwargs = kwargs
        x, dim, *_ = call(b, node, "dim", "_stacklevel", "dtype")
        if dim is None:
            raise b.refuse(f"{target.__name__} without a dimension; name the dimension")
        return b.emit("call_function", target, (x,), {"dim": positive(x, dim)})

    return handler


def reduction(target: Callable) -> Handler:
    """Return a handler of an operator that leaves one element of some dimensions."""

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        x, dim, keepdim = call(b, node, "dim", "keepdim", keepdim=False)
        return b.emit("call_function", target, (x,), {"dims": dims_of(x, dim), "keepdim": bool(keepdim)})

    return handler


def product(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit the product over a dimension."""
    x, dim, keepdim = call(b, node, "dim", "keepdim", keepdim=False)
    if dim is None:
        raise b.refuse("prod without a dimension; name the dimension")
    return b.emit("call_function", normalization.product, (x,), {"dim": positive(x, dim), "keepdim": bool(keepdim)})


def variance(target: Callable, and_mean: bool = False) -> Handler:
    """Return a handler of the variance, or of its root, the standard deviation, perhaps together with the mean."""

    def handler(b: GraphBuilder, node: fx.Node) -> Value:
        x, dim, unbiased, keepdim, correction = call(
            b, node, "dim", "unbiased", "keepdim", "correction", unbiased=True, keepdim=False
        )
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        attributes: dict[str, Any] = {
            "dims": dims_of(x, dim),
            "correction": int(unbiased) if correction is None else int(correction),
            "keepdim": bool(keepdim),
        }
        y = b.emit("call_function", target, (x,), attributes)
        if not and_mean:
            return y
        return y, b.emit("call_function", torch.mean, (x,), {"dim": attributes["dims"], "keepdim": bool(keepdim)})

    return handler


def norm(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit the norm of vectors."""
    x, order, dim, keepdim = call(b, node, "p" if "p" in node.kwargs else "ord", "dim", "keepdim", keepdim=False)
    order = 2 if order in (None, "fro") else order
    if order <= 0 or order == float("inf"):
        raise b.refuse(f"a norm of order {order} is not supported", hint="Write (x.abs() ** p).sum(dim) ** (1 / p).")
    attributes = {"order": order, "dims": dims_of(x, dim), "keepdim": bool(keepdim)}
    return b.emit("call_function", normalization.norm, (x,), attributes)


def normalize(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``F.normalize``."""
    x, order, dim, eps = call(b, node, "p", "dim", "eps", p=2.0, dim=1, eps=1e-12)
    if not isinstance(dim, int):
        raise b.refuse(
            "normalize over several dimensions is not supported",
            hint="Write x / x.norm(dim=…, keepdim=True).clamp_min(1e-12).",
        )
    attributes = {"order": order, "dim": positive(x, dim), "eps": eps}
    return b.emit("call_function", normalization.normalize, (x,), attributes)


def last_norm(target: Callable, layer: str) -> Handler:
    """Return a handler of a layer norm or RMS norm that is called as a function with computed parameters."""

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        names = ("normalized_shape", "weight", "bias", "eps")[: 4 if layer == "layer" else 5]
        if layer == "rms":
            names = ("normalized_shape", "weight", "eps")
        x, shape, *parameters, eps = call(b, node, *names, eps=1e-5 if layer == "layer" else None)
        tensors = [p for p in parameters if p is not None]
        if parameters and parameters[0] is None and tensors:
            raise b.refuse("a layer norm with a shift but no scale is not supported")
        eps = RMS_EPS if eps is None else eps
        return b.emit("call_function", target, (x, *tensors), {"count": len(tuple(shape)), "eps": float(eps)})

    return handler


RMS_EPS = 1.1920928955078125e-07  # of float32, torch's default


def parameters_of(b: GraphBuilder, path: str, layer: nn.Module) -> list[fx.Node]:
    """Emit the scale and the shift of a layer, if it has them."""
    names = [name for name in ("weight", "bias") if getattr(layer, name, None) is not None]
    if names == ["bias"]:
        raise b.refuse(f"{type(layer).__name__} with a shift but no scale is not supported")
    return [b.emit("get_attr", f"{path}.{name}") for name in names]


def layer_norm(b: GraphBuilder, path: str, layer: nn.LayerNorm, x: fx.Node) -> fx.Node:
    """Emit a layer norm."""
    attributes = {"count": len(layer.normalized_shape), "eps": float(layer.eps)}
    return b.emit("call_function", normalization.layer_norm, (x, *parameters_of(b, path, layer)), attributes)


def rms_norm(b: GraphBuilder, path: str, layer: nn.RMSNorm, x: fx.Node) -> fx.Node:
    """Emit an RMS norm."""
    eps = RMS_EPS if layer.eps is None else layer.eps
    attributes = {"count": len(layer.normalized_shape), "eps": float(eps)}
    return b.emit("call_function", normalization.rms_norm, (x, *parameters_of(b, path, layer)), attributes)


def group_norm(b: GraphBuilder, path: str, layer: nn.GroupNorm, x: fx.Node) -> fx.Node:
    """Emit a group norm."""
    attributes = {"groups": layer.num_groups, "eps": float(layer.eps)}
    return b.emit("call_function", normalization.group_norm, (x, *parameters_of(b, path, layer)), attributes)


def instance_norm(b: GraphBuilder, path: str, layer: nn.InstanceNorm2d, x: fx.Node) -> fx.Node:
    """Emit an instance norm that measures each image."""
    if layer.track_running_stats:
        raise b.refuse(f"{type(layer).__name__} with running statistics is not supported; a batch norm is")
    attributes = {"eps": float(layer.eps)}
    return b.emit("call_function", normalization.instance_norm, (x, *parameters_of(b, path, layer)), attributes)


def softmin(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit the softmax of the opposite."""
    x, dim, *_ = call(b, node, "dim", "_stacklevel", "dtype")
    if dim is None:
        raise b.refuse("softmin without a dimension; name the dimension")
    opposite = b.emit("call_function", pointwise.negative, (x,))
    return b.emit("call_function", normalization.softmax, (opposite,), {"dim": positive(x, dim)})


def instance_norm_call(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``F.instance_norm``."""
    names = ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    x, mean, _, weight, bias, measured, _, eps = call(b, node, *names, use_input_stats=True, eps=1e-5)
    if not measured or mean is not None or (weight is None) != (bias is None):
        raise b.refuse("an instance norm with running statistics, or with a scale or a shift alone, is not supported")
    parameters = () if weight is None else (weight, bias)
    return b.emit("call_function", normalization.instance_norm, (x, *parameters), {"eps": float(eps)})


NORMALIZATION_HANDLERS: dict[str, Handler] = {
    "softmax": along(normalization.softmax),
    "log_softmax": along(normalization.log_softmax),
    "cumsum": along(normalization.cumulative_sum),
    "amax": reduction(normalization.largest),
    "amin": reduction(normalization.smallest),
    "logsumexp": reduction(normalization.log_sum_exp),
    "prod": product,
    "softmin": softmin,
    "var": variance(normalization.variance),
    "std": variance(normalization.standard_deviation),
    "var_mean": variance(normalization.variance, and_mean=True),
    "std_mean": variance(normalization.standard_deviation, and_mean=True),
    **dict.fromkeys(("norm", "vector_norm", "linalg_vector_norm", "linalg_norm"), norm),
    "instance_norm": instance_norm_call,
    "normalize": normalize,
    "layer_norm": last_norm(normalization.layer_norm, "layer"),
    "rms_norm": last_norm(normalization.rms_norm, "rms"),
}
NORMALIZATION_LAYERS: dict[type[nn.Module], LayerHandler] = {
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.GroupNorm: group_norm,
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), instance_norm),
}
