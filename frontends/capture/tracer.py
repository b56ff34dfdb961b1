"""The tracer: an ``fx.Tracer`` whose proxies know the shapes of their values."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import einops
import einops.einops
import spikingjelly
import torch
from spikingjelly.activation_based import base
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

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


# frames that only pass a call on; the user's line is the one that called them
PLUMBING = (
    *(str(Path(str(package.__file__)).parent) + os.sep for package in (torch, einops)),
    *(
        str(Path(str(spikingjelly.__file__)).parent / "activation_based" / part)
        for part in ("layer/container.py", "layer/stateless_wrapper.py", "functional/forward.py", "base.py")
    ),
    *(str(Path(str(package.__file__)).parent) + os.sep for package in (svitc, svitc.frontends)),
)


_ANSWERED = ("shape", "ndim", "dtype", "device", "is_cuda", "layout", "requires_grad")


def user_line() -> str | None:
    """``file.py:line`` of the innermost frame that is the model's own code."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(PLUMBING) and not name.startswith("<"):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _data_dependent(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"control flow depends on the data: {what} of a tensor is needed while the model is captured",
        where=user_line(),
        hint="A compiled graph takes the same path for every input; branch on shapes or on configuration instead.",
    )


class ValueProxy(fx.Proxy):
    """A proxy that knows the shape of what it stands for."""

    def __getattr__(self, name: str) -> Any:
        if name in _ANSWERED:
            return getattr(self.node.meta["val"], name)
        return super().__getattr__(name)

    def size(self, dim: int | None = None) -> Any:
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

    def item(self) -> Any:
        raise _data_dependent("the value")

    def tolist(self) -> Any:
        raise _data_dependent("the values")

    def __setitem__(self, key: Any, value: Any) -> None:
        raise UnsupportedError("assignment into a tensor is not supported", where=user_line())


def _in_place(target: Callable) -> Callable:
    """``x += y`` recorded as such, as it changes what else ``x`` is known by."""

    def method(self: ValueProxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


class Tracer(fx.Tracer):
    """Records calls, with a fake value, the user's line and the enclosing module on each node."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=False)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.example: dict[str, torch.Tensor] = {}
        self.evaluating = False  # a leaf runs on fake values: nothing that it does is recorded

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES)

    def proxy(self, node: fx.Node) -> ValueProxy:
        return ValueProxy(node, self)

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args: Any = None) -> tuple[Any, list]:
        """One placeholder; optional arguments keep their defaults, and are no part of the graph."""
        return root_fn, [self.root, self.create_proxy("placeholder", next(iter(self.example)), (), {})]

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if isinstance(m, ops.MODULES) and getattr(m, "step_mode", None) == "s" and ops.is_neuron(m):
            raise UnsupportedError(
                f"neuron {self.path_of_module(m)} is in single-step mode",
                where=user_line(),
                hint="Use spikingjelly.activation_based.functional.set_step_mode(model, 'm').",
            )
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: Any, args: tuple, kwargs: dict, *rest: Any, **more: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        node = proxy.node
        # the input has no line of its own: what lies above it is whoever called us
        node.meta["source"] = user_line() if kind != "placeholder" else None
        node.meta["scope"] = self.scope.module_path
        node.meta["val"] = self.value(node)
        return proxy

    def value(self, node: fx.Node) -> Any:
        """The fake value of a node, by running it on its inputs' fake values."""
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
def einops_recorded(tracer: Tracer) -> Iterator[None]:
    """Within, ``rearrange`` and ``repeat`` of einops, by whatever name the model imported them, record themselves."""
    plain = einops.einops.reduce

    def reduce(tensor: Any, pattern: str, reduction: Any, **sizes: int) -> Any:
        if isinstance(tensor, ValueProxy) and reduction in ("rearrange", "repeat"):
            return tracer.create_proxy("call_function", getattr(einops, reduction), (tensor, pattern), sizes)
        return plain(tensor, pattern, reduction, **sizes)

    einops.einops.reduce = reduce
    try:
        yield
    finally:
        einops.einops.reduce = plain
