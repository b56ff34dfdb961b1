"""Changes to Python and PyTorch that last while a model is traced, where stand-ins for tensors would not be noticed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import einops
import einops.einops
import torch
from torch import fx, nn

from svitc.frontends.capture.data_dependent import kept_value
from svitc.frontends.capture.proxies import Tracer, ValueProxy
from svitc.frontends.capture.user_line import is_user_code


@contextlib.contextmanager
def all_of(tracer: Tracer, model: nn.Module) -> Iterator[None]:
    """Make all changes of this file while a tracer traces a model."""
    with proxies_in_modules(), record_einops(tracer), tensor_functions(), scripts_as_written(tracer), tensors_in(model):
        yield


@contextlib.contextmanager
def proxies_in_modules() -> Iterator[None]:
    """Let a model keep traced values: in a buffer, such as a membrane, or as a number, such as a firing rate."""
    original, register = nn.Module.__setattr__, nn.Module.register_buffer

    def setattribute(module: nn.Module, name: str, value: object) -> None:
        value = kept_value(value)
        if isinstance(value, fx.Proxy) and (name in module._buffers or name in module._parameters):
            module._buffers.pop(name, None)
            module._parameters.pop(name, None)
            vars(module)[name] = value
        else:
            if name in module._buffers or name in module._parameters:
                vars(module).pop(name, None)
            original(module, name, value)  # type: ignore[arg-type]

    def register_buffer(module: nn.Module, name: str, tensor: Any, persistent: bool = True) -> None:
        if isinstance(tensor, fx.Proxy):
            module._buffers.pop(name, None)
            vars(module)[name] = tensor
        else:
            vars(module).pop(name, None)
            register(module, name, tensor, persistent)

    nn.Module.__setattr__, nn.Module.register_buffer = setattribute, register_buffer  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.__setattr__, nn.Module.register_buffer = original, register  # type: ignore[method-assign]


@contextlib.contextmanager
def tensor_functions() -> Iterator[None]:
    """Let functions that PyTorch does not dispatch know the stand-ins for tensors."""
    originals = {name: getattr(torch, name) for name in ("is_tensor", "tensor", "as_tensor", "asarray")}

    def copied(original: Callable) -> Callable:
        def make(data: object, *args: object, **kwargs: object) -> Any:
            return data.clone() if isinstance(data, ValueProxy) else original(data, *args, **kwargs)

        return make

    for name, original in originals.items():
        setattr(torch, name, copied(original))
    torch.is_tensor = lambda obj: isinstance(obj, ValueProxy) or originals["is_tensor"](obj)  # type: ignore[assignment]
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


@contextlib.contextmanager
def scripts_as_written(tracer: Tracer) -> Iterator[None]:
    """Run functions that ``torch.jit.script`` compiled as they were written, where stand-ins are passed to them."""
    kind: Any = torch.jit.ScriptFunction
    original = kind.__call__

    def call(self: Any, *args: object, **kwargs: object) -> object:
        written = getattr(self, "_torchdynamo_inline", None)  # set by torch.jit.script for torch.compile
        has_proxies = any(isinstance(value, fx.Proxy) for value in tracer.resolve((args, kwargs)))
        return written(*args, **kwargs) if has_proxies and callable(written) else original(self, *args, **kwargs)

    kind.__call__ = call
    try:
        yield
    finally:
        kind.__call__ = original


@contextlib.contextmanager
def tensors_in(model: nn.Module) -> Iterator[None]:
    """Let ``isinstance(x, torch.Tensor)`` hold for stand-ins in the files that define the model's classes.

    A stand-in cannot claim to be a tensor everywhere: PyTorch would look for data in it.
    """
    holders = [value for module in model.modules() for value in (type(module), *vars(module).values())]
    names = {str(getattr(value, "__module__", "")) for value in holders if isinstance(value, (type, FunctionType))}
    used = [value for name in names for value in list(vars(sys.modules.get(name, model)).values())]
    names |= {value.__module__ for value in used if isinstance(value, FunctionType)}  # imported from other files
    modules = [sys.modules[name] for name in names if name in sys.modules]
    places = [vars(m) for m in modules if is_user_code(getattr(m, "__file__", None) or "<")]
    places = [place for place in places if "isinstance" not in place]
    tensor = torch.empty(0)

    def is_instance(value: object, kind: Any) -> bool:
        return isinstance(tensor if isinstance(value, ValueProxy) else value, kind)

    for place in places:
        place["isinstance"] = is_instance
    try:
        yield
    finally:
        for place in places:
            del place["isinstance"]


@contextlib.contextmanager
def record_einops(tracer: Tracer) -> Iterator[None]:
    """Record calls of einops' ``rearrange``, ``repeat`` and ``reduce``, by whatever name the model imported them."""
    original = einops.einops.reduce

    def reduce(tensor: object, pattern: str, reduction: str | Callable, **sizes: int) -> Any:
        [value] = tracer.resolve((tensor,)) if isinstance(tensor, torch.Tensor) else [tensor]
        if isinstance(tensor, (list, tuple)) and any(isinstance(t, fx.Proxy) for t in tracer.resolve(tensor)):
            value = torch.stack(list(tensor))
        if not isinstance(value, ValueProxy):
            return original(tensor, pattern, reduction, **sizes)
        if reduction in ("rearrange", "repeat"):
            return tracer.create_proxy("call_function", getattr(einops, reduction), (value, pattern), sizes)
        left, right = pattern.split("->")
        gone = " ".join(name for name in _names(left) if name not in _names(right))
        joined = einops.rearrange(value, f"{left} -> {right} ({gone})", **sizes)
        return (
            getattr(joined, str(reduction))(-1)
            if reduction in ("mean", "sum")
            else getattr(joined, f"a{reduction}")(-1)
        )

    einops.einops.reduce = reduce
    try:
        yield
    finally:
        einops.einops.reduce = original


def _names(side: str) -> list[str]:
    """Return the names of axes on one side of an einops pattern."""
    return [name for name in side.replace("(", " ").replace(")", " ").split() if name != "1"]
