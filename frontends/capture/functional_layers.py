"""Layers that a model calls as functions of its own parameters: each becomes the layer of ``torch.nn``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx.node import Target
from torch.nn import functional as F

from svitc.errors import UnsupportedError
from svitc.frontends.capture.graph_builder import unused_name
from svitc.frontends.capture.leaves import leaf_kind
from svitc.frontends.capture.proxies import ValueProxy
from svitc.frontends.capture.user_line import user_line

_CONVOLUTION = dict(input=None, weight=None, bias=None, stride=1, padding=0, dilation=1, groups=1)
_TRANSPOSED = dict(input=None, weight=None, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)
_NORM = dict(
    input=None, running_mean=None, running_var=None, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
)
_SIGNATURES: dict[Callable, tuple[type[nn.Module] | None, dict[str, Any]]] = {
    F.conv1d: (nn.Conv1d, _CONVOLUTION),
    F.conv2d: (nn.Conv2d, _CONVOLUTION),
    F.conv3d: (nn.Conv3d, _CONVOLUTION),
    F.conv_transpose1d: (nn.ConvTranspose1d, _TRANSPOSED),
    F.conv_transpose2d: (nn.ConvTranspose2d, _TRANSPOSED),
    F.conv_transpose3d: (nn.ConvTranspose3d, _TRANSPOSED),
    F.linear: (nn.Linear, dict(input=None, weight=None, bias=None)),
    F.batch_norm: (None, _NORM),
    F.layer_norm: (nn.LayerNorm, dict(input=None, normalized_shape=None, weight=None, bias=None, eps=1e-5)),
    F.group_norm: (nn.GroupNorm, dict(input=None, num_groups=None, weight=None, bias=None, eps=1e-5)),
    F.prelu: (nn.PReLU, dict(input=None, weight=None)),
}
_TENSORS = ("weight", "bias", "running_mean", "running_var")


class Layers:
    """The layers that take the place of functions.

    Args:
        constants: The model's parameters, and what is computed of them.
    """

    def __init__(self, constants: Any) -> None:
        self.constants = constants
        self._made: dict[tuple, str] = {}
        self._tensors: list[torch.Tensor] = []  # keeps them from being freed, and their place from being taken

    def call(self, kind: str, target: Target, args: tuple, kwargs: dict) -> ValueProxy | None:
        """Record the call of the layer that a function computes, or return None where there is none."""
        if callable(target) and target in _SIGNATURES:
            layer, defaults = _SIGNATURES[target]
            given = {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}
            x = given.pop("input")
            if not isinstance(x, ValueProxy) or any(isinstance(given.get(name), ValueProxy) for name in _TENSORS):
                return None
            if layer is None:
                layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[x.dim()]
                if given.pop("training") or given["running_mean"] is None:
                    raise UnsupportedError("batch_norm uses the statistics of the batch", where=user_line())
            return self._record(layer, given, x, str(target.__name__))
        return self._product(target, args) if not kwargs else None

    def _product(self, target: Target, args: tuple) -> ValueProxy | None:
        """Record a matrix product with a constant matrix as a linear layer."""
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if name.strip("_") not in ("matmul", "mm", "rmatmul") or len(args) != 2:
            return None
        left, right = reversed(args) if name.strip("_") == "rmatmul" else args
        if isinstance(right, torch.Tensor) and right.dim() == 2 and isinstance(left, ValueProxy) and left.dim() > 1:
            return self._record(nn.Linear, {"weight": right.t(), "bias": None}, left, "matmul")
        if isinstance(left, torch.Tensor) and left.dim() == 2 and isinstance(right, ValueProxy) and right.dim() > 1:
            self.constants.rounded.append(f"a product with a constant matrix on its left at {user_line()}")
            turned = right.transpose(-1, -2)
            return self._record(nn.Linear, {"weight": left, "bias": None}, turned, "matmul").transpose(-1, -2)
        return None

    def _record(self, kind: type[nn.Module], given: dict[str, Any], x: ValueProxy, name: str) -> ValueProxy:
        """Record the call of a layer of this class and with these attributes."""
        tracer, root = self.constants.tracer, self.constants.root
        tensors = [v for v in given.values() if isinstance(v, torch.Tensor)]
        key = (kind, *((k, _identity(v)) for k, v in given.items()))
        if key not in self._made:
            self._tensors += tensors
            layer = _make(kind, given, x, self.constants)
            path = next((p for p, m in root.named_modules() if _is_same(m, layer)), None)
            if path is None:
                scope = tracer.scope.module_path
                owner = root.get_submodule(scope)
                own = unused_name(owner, name)
                owner.add_module(own, layer)
                path = f"{scope}.{own}".lstrip(".")
            self._made[key] = path
        return tracer.record("call_module", self._made[key], (x,), {})


def _identity(value: object) -> tuple:
    """Return what tells a tensor, or another argument, apart from others."""
    if not isinstance(value, torch.Tensor):
        return (str(value),)
    return value.data_ptr(), tuple(value.shape), value.stride(), value._version


def _make(kind: type[nn.Module], given: dict[str, Any], x: ValueProxy, constants: Any) -> nn.Module:
    """Return a layer with the weights that a function is called with."""
    weight: Any = given.get("weight")
    bias = given.get("bias")
    options: dict[str, Any] = {k: v for k, v in given.items() if k not in _TENSORS}
    layer: nn.Module
    if kind is nn.Linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    elif kind is nn.PReLU:
        layer = nn.PReLU(weight.numel(), device="meta")
    elif kind is nn.LayerNorm:
        layer = nn.LayerNorm(options["normalized_shape"], options["eps"], weight is not None, bias is not None, "meta")
    elif kind is nn.GroupNorm:
        layer = nn.GroupNorm(options["num_groups"], x.shape[1], options["eps"], weight is not None, "meta")
    elif "running_mean" in given:
        channels = given["running_mean"].numel()
        momentum, eps = options["momentum"], options["eps"]
        layer = kind(channels, eps, momentum, weight is not None, device="meta")
    else:
        outer, inner = weight.shape[:2]
        channels = (outer, inner * options["groups"])
        if not issubclass(kind, nn.modules.conv._ConvTransposeNd):
            channels = (inner * options["groups"], outer)
        layer = kind(*channels, tuple(weight.shape[2:]), bias=bias is not None, **options, device="meta")
    for name, tensor in (("weight", weight), ("bias", bias)):
        layer.register_parameter(name, None if tensor is None else constants.parameter(tensor))
    for name in ("running_mean", "running_var"):
        if name in given:
            layer.register_buffer(name, given[name].detach() if given[name].requires_grad else given[name])
    if hasattr(layer, "num_batches_tracked"):
        layer.register_buffer("num_batches_tracked", torch.tensor(0))
    return layer.eval()


def _is_same(module: nn.Module, layer: nn.Module) -> bool:
    """Return whether a layer of the model is the layer that a function computes."""
    if leaf_kind(module) is not type(layer) or getattr(module, "step_mode", "s") != "s":
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    tensors = {**layer._parameters, **layer._buffers}
    if any(getattr(module, k, None) is not v for k, v in tensors.items() if k != "num_batches_tracked"):
        return False
    private = ("_parameters", "_buffers", "training", "_reversed_padding_repeated_twice")
    return all(vars(module).get(k) == v for k, v in vars(layer).items() if k not in private and not k.startswith("_"))
