"""CUDA as a name of the CPU: ``.cuda()``, ``.to("cuda")`` and ``device="cuda"`` in a model's code leave data here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
_NAME = re.compile(r"cuda(:\d+)?")
_TYPES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Byte", "Char", "Bool")
# functions of torch.cuda that fail without a GPU, and what they return here
_ANSWERS: dict[str, Callable[..., Any]] = {
    "synchronize": lambda *_, **__: None,
    "set_device": lambda *_, **__: None,
    "current_device": lambda: "cpu",
    **{f"{kind}Tensor": getattr(torch, f"{kind}Tensor") for kind in _TYPES},
}


def _here(value: object) -> object:
    """Return the CPU for a CUDA device; any other value as it is."""
    if isinstance(value, torch.device):
        return CPU if value.type == "cuda" else value
    if isinstance(value, str):
        return "cpu" if _NAME.fullmatch(value) else value.replace("torch.cuda.", "torch.")
    return value


class _CudaIsCpu(TorchFunctionMode):
    """Replaces the device in every call of PyTorch."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "cuda":
            return args[0]
        here = [_here(arg) for arg in args]
        if name == "to" and len(here) > 1 and type(here[1]) is int:  # the number of a GPU
            here[1] = CPU
        named = {key: _here(value) for key, value in (kwargs or {}).items()}
        if type(named.get("device")) is int:
            named["device"] = CPU
        return func(*here, **named)


@contextlib.contextmanager
def cuda_is_cpu() -> Iterator[None]:
    """Keep everything on the CPU in the body of a ``with`` statement, whatever a model's code asks for."""
    originals = {name: getattr(torch.cuda, name, None) for name in _ANSWERS}
    for name, answer in _ANSWERS.items():
        setattr(torch.cuda, name, answer)
    try:
        with _CudaIsCpu():
            yield
    finally:
        for name, original in originals.items():
            setattr(torch.cuda, name, original)
