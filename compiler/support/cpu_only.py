"""Running of model code that was written for a GPU on the CPU: ``.cuda()``, ``.to("cuda")`` and ``torch.cuda``."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from svitc.support.uncompiled import uncompiled

GPUS = ("cuda", "xpu", "mps", "npu", "hip")
_NAME = re.compile(rf"({'|'.join(GPUS)})(:\d+)?")
_TYPES = ("Float", "Double", "Half", "BFloat16", "Int", "Long", "Short", "Char", "Byte", "Bool")


def _host(value: object) -> Any:
    """Return the CPU for the name or the object of a GPU, other values as they are."""
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type in GPUS else value
    return "cpu" if isinstance(value, str) and _NAME.fullmatch(value) else value


def host_arguments(name: str, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of a function of PyTorch with the CPU in place of each GPU.

    Args:
        name: name of the function.
    """
    if name == "to" and len(args) > 1 and type(args[1]) is int:  # the number of a GPU
        args = (args[0], "cpu", *args[2:])
    if type(kwargs.get("device")) is int:
        kwargs = {**kwargs, "device": "cpu"}
    return tuple(map(_host, args)), {key: _host(value) for key, value in kwargs.items()}


class _OnCpu(TorchFunctionMode):
    """Leaves every tensor on the CPU, whatever device a call names."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in GPUS and args:  # Tensor.cuda()
            return args[0]
        if kwargs or not all(isinstance(value, torch.Tensor) for value in args):
            args, kwargs = host_arguments(name, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class _Idle:
    """A stream, an event, or a context of a device, none of which the CPU has: all its methods do nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None

    def __enter__(self) -> _Idle:
        return self

    def __exit__(self, *_: object) -> None:
        pass


_REPLACEMENTS: dict[str, Any] = {
    "current_device": lambda: 0,
    "set_device": lambda _: None,
    "synchronize": lambda *_: None,
    "get_device_name": lambda *_: "cpu",
    "get_device_capability": lambda *_: (0, 0),
    **dict.fromkeys(("current_stream", "default_stream", "stream", "device", "device_of", "Stream", "Event"), _Idle),
    **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved"), lambda *_, **__: 0),
    **dict.fromkeys(("reset_peak_memory_stats", "empty_cache"), lambda *_, **__: None),
    **{f"{name}Tensor": getattr(torch, f"{name}Tensor") for name in _TYPES},
}


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Let code that asks for a GPU run on the CPU, in the body of a ``with`` statement.

    Tensors and modules stay where they are when they are moved to a GPU, and ``torch.cuda`` answers as far as
    constructors and ``forward`` of models need it. ``torch.cuda.is_available`` is left as it is. Nothing is
    compiled for a GPU either: see ``uncompiled``.
    """
    before = {name: getattr(torch.cuda, name) for name in _REPLACEMENTS if hasattr(torch.cuda, name)}
    for name in before:
        setattr(torch.cuda, name, _REPLACEMENTS[name])
    try:
        with _OnCpu(), uncompiled():
            yield
    finally:
        for name, value in before.items():
            setattr(torch.cuda, name, value)
