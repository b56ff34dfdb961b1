"""Trace a model on fake tensors: record each call with its value's shape, the user's line and the enclosing module."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import einops
import einops.einops
import spikingjelly
import torch
from spikingjelly.activation_based import base
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import Argument, Target

import svitc.frontends
from svitc.errors import UnsupportedError
from svitc.ir import ops

LEAVES = (
    *ops.CONVOLUTIONS,
    nn.Linear,
    *ops.BATCH_NORMS,
    *ops.POOLS,
    nn.MaxPool3d,
    nn.AvgPool3d,
    *ops.PADS,
    *ops.STATELESS_NEURONS,
    nn.Dropout,
    nn.Identity,
    base.MemoryModule,
)


# Files whose frames only pass a call on: the line to show is that of their caller in the user's code.
FRAMEWORK_PATHS = (
    *(str(Path(str(package.__file__)).parent) + os.sep for package in (torch, einops)),
    *(
        str(Path(str(spikingjelly.__file__)).parent / "activation_based" / part)
        for part in ("layer/container.py", "layer/stateless_wrapper.py", "functional/forward.py", "base.py")
    ),
    *(str(Path(str(package.__file__)).parent) + os.sep for package in (svitc, svitc.frontends)),
)
# attributes that a proxy takes from its fake value
_VALUE_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "is_cuda", "layout", "requires_grad")


def user_line() -> str | None:
    """Return ``file.py:line`` of the innermost frame of the model's own code."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(FRAMEWORK_PATHS) and not name.startswith("<"):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _data_dependent(need: str) -> UnsupportedError:
    return UnsupportedError(
        f"control flow depends on the data: {need} of a tensor is needed while the model is captured",
        where=user_line(),
        hint="A compiled graph takes the same path for every input; branch on shapes or on configuration instead.",
    )


class ValueProxy(fx.Proxy):
    """A proxy that knows its value's shape and type, from the fake tensor in its node's ``meta["val"]``."""

    def __getattr__(self, name: str) -> Any:
        if name in _VALUE_ATTRIBUTES:
            return getattr(self.node.meta["val"], name)
        return super().__getattr__(name)

    def size(self, dim: int | None = None) -> int | torch.Size:
        value = self.node.meta["val"]
        return value.size() if dim is None else value.size(dim)

    def dim(self) -> int:
        return self.node.meta["val"].dim()

    def numel(self) -> int:
        return self.node.meta["val"].numel()

    def __len__(self) -> int:
        return len(self.node.meta["val"])

    def __iter__(self):
        return (self[i] for i in range(len(self)))  # type: ignore[index]

    def __bool__(self) -> bool:
        raise _data_dependent("the truth")

    def __float__(self) -> float:
        raise _data_dependent("the value")

    def __int__(self) -> int:
        raise _data_dependent("the value")

    def item(self) -> NoReturn:
        raise _data_dependent("the value")

    def tolist(self) -> NoReturn:
        raise _data_dependent("the values")

    def __setitem__(self, key: object, value: object) -> NoReturn:
        raise UnsupportedError("assignment into a tensor is not supported", where=user_line())


def in_place_method(target: Callable) -> Callable:
    """Return a method that records ``x += y`` as such, as it also changes other references to ``x``."""

    def method(self: ValueProxy, other: Argument) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


class Tracer(fx.Tracer):
    """Tracer that records calls, with a fake value, the user's line and the enclosing module in each node's ``meta``.

    Attributes:
        mode: Makes tensors that have a shape and a type but no data.
        example: The input by the name of the argument that takes it.
        evaluating: Whether a leaf runs on fake values, when nothing is recorded.
    """

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=False)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.example: dict[str, torch.Tensor] = {}
        self.evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES)

    def proxy(self, node: fx.Node) -> ValueProxy:
        return ValueProxy(node, self)

    def create_args_for_root(
        self, root_fn: Callable, is_module: bool, concrete_args: object = None
    ) -> tuple[Callable, list]:
        """Return the root and its arguments: one placeholder. Optional arguments keep their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", next(iter(self.example)), (), {})]

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
        if isinstance(m, ops.MODULES) and getattr(m, "step_mode", None) == "s" and ops.is_neuron(m):
            raise UnsupportedError(
                f"neuron {self.path_of_module(m)} is in single-step mode",
                where=user_line(),
                hint="Use spikingjelly.activation_based.functional.set_step_mode(model, 'm').",
            )
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict) -> object:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(
        self,
        kind: str,
        target: Target,
        args: tuple,
        kwargs: dict,
        name: str | None = None,
        type_expr: object = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> fx.Proxy:
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)
        node = proxy.node
        # the input has no line in the model: the frames above belong to the caller of capture
        node.meta["source"] = user_line() if kind != "placeholder" else None
        node.meta["scope"] = self.scope.module_path
        node.meta["val"] = self.value(node)
        return proxy

    def value(self, node: fx.Node) -> object:
        """Run a node on the fake values of its inputs, and return its fake value."""
        args: Any
        kwargs: Any
        target: Any = node.target
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        with self.mode, torch.no_grad():
            if node.op == "placeholder":
                return self.mode.from_tensor(self.example[str(node.target)])
            if node.op == "output":
                return args[0]
            try:
                if node.op == "get_attr":
                    owner, _, name = str(node.target).rpartition(".")
                    self.evaluating = True
                    return self.mode.from_tensor(getattr(self.root.get_submodule(owner), name).detach())
                if node.op == "call_module":
                    module = self.root.get_submodule(str(node.target))
                    if isinstance(module, base.MemoryModule):
                        return args[0].clone()
                    self.evaluating = True
                    return module.forward(*args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                return target(*args, **kwargs)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                name = target if isinstance(target, str) else getattr(target, "__name__", target)
                text = str(error).splitlines()[0]
                raise UnsupportedError(f"{name} does not fit its input: {text}", where=node.meta["source"]) from error
            finally:
                self.evaluating = False


@contextlib.contextmanager
def record_einops(tracer: Tracer) -> Iterator[None]:
    """Record calls of einops' ``rearrange`` and ``repeat``, by whatever name the model imported them."""
    original = einops.einops.reduce

    def reduce(tensor: object, pattern: str, reduction: str | Callable, **sizes: int) -> Any:
        if isinstance(tensor, ValueProxy) and reduction in ("rearrange", "repeat"):
            return tracer.create_proxy("call_function", getattr(einops, reduction), (tensor, pattern), sizes)
        return original(tensor, pattern, reduction, **sizes)

    einops.einops.reduce = reduce
    try:
        yield
    finally:
        einops.einops.reduce = original
