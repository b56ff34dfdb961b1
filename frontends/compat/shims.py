"""Compatibility, names: what old model files import and what stands for it.

Old spiking code takes neurons from ``spikingjelly.clock_driven`` and helpers from timm. Here are the same names over
SpikingJelly 2 and PyTorch; nothing of either package is needed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

import torch
from spikingjelly.activation_based import base, layer, neuron
from torch import nn

# arguments of neurons that chose how to compute, or watched; they do not change what is computed
DROPPED = ("backend", "lava_s_cale", "cupy_fp32_inference", "monitor_state")


class _MultiStepMeta(type):
    """Neurons that a multi-step name makes are SpikingJelly's own, and count as instances of the name."""

    kind: type[nn.Module]

    def __instancecheck__(cls, instance: Any) -> bool:
        if type.__instancecheck__(cls, instance):
            return True
        return "__new__" in vars(cls) and isinstance(instance, cls.kind) and instance.step_mode == "m"


def multi_step(kind: type[nn.Module], name: str) -> type[nn.Module]:
    """``MultiStepLIFNode`` of ``LIFNode``: made in multi-step mode, without the old choice of a backend."""
    takes = [p for p in inspect.signature(kind).parameters if p not in ("step_mode", "store_v_seq")]

    def arguments(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        given = dict(zip(takes, args, strict=False))  # what comes after them chose a backend
        return {**given, **{k: v for k, v in kwargs.items() if k not in DROPPED}, "step_mode": "m"}

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        # a subclass of the user's stays one; the name itself makes the neuron that svitc knows
        return kind.__new__(cls) if cls is not made else kind(**arguments(args, kwargs))

    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, **arguments(args, kwargs))

    made: Any = _MultiStepMeta(name, (kind,), {"__new__": new, "__init__": init, "kind": kind})
    return made


def clock_driven(module: str, name: str) -> Any:
    """A name of ``spikingjelly.clock_driven.<module>`` that SpikingJelly 2 has no more.

    Raises:
        AttributeError: nothing stands for it.
    """
    if module == "neuron" and name.startswith("MultiStep"):
        kind = getattr(neuron, name.removeprefix("MultiStep"), None)
        if isinstance(kind, type) and issubclass(kind, base.MemoryModule):
            return multi_step(kind, name)
    if module == "layer" and name in ("MultiStepDropout", "MultiStepDropout2d"):
        kind = getattr(layer, name.removeprefix("MultiStep"))
        return lambda p=0.5, *_, **__: kind(p, step_mode="m")
    raise AttributeError(f"nothing stands for {name} of spikingjelly.clock_driven.{module}")


class DropPath(nn.Module):
    """Stochastic depth: in training, whole samples of a branch are dropped; in inference, nothing."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return drop_path(x, self.drop_prob, self.training, self.scale_by_keep)


def drop_path(
    x: torch.Tensor, drop_prob: float = 0.0, training: bool = False, scale_by_keep: bool = True
) -> torch.Tensor:
    if not drop_prob or not training:
        return x
    keep = 1 - drop_prob
    mask = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
    return x * (mask / keep if scale_by_keep and keep > 0 else mask)


def to_tuple(count: int) -> Callable[[Any], tuple]:
    """``to_2tuple`` and its like: a number that many times, anything iterable as it is."""

    def convert(x: Any) -> tuple:
        return tuple(x) if isinstance(x, Iterable) and not isinstance(x, str) else tuple(repeat(x, count))

    return convert


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    return {"url": url, **kwargs}


class Registry:
    """The factories that one file registers; another file may register the same names."""

    def __init__(self) -> None:
        self.factories: dict[str, Callable[..., nn.Module]] = {}

    def register_model(self, factory: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        self.factories[factory.__name__] = factory
        return factory

    def create_model(self, name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        """A registered model; arguments of None are left at the factory's defaults, as timm does."""
        if name not in self.factories:
            raise ValueError(f"no model {name!r} is registered; there are {', '.join(self.factories) or 'none'}")
        return self.factories[name](pretrained=pretrained, **{k: v for k, v in kwargs.items() if v is not None})

    def timm(self) -> dict[str, Any]:
        """The names of timm that stand for something, whatever submodule they are taken from."""
        return {
            **{f"to_{n}tuple": to_tuple(n) for n in (1, 2, 3, 4)},
            "to_ntuple": to_tuple,
            "trunc_normal_": nn.init.trunc_normal_,
            "DropPath": DropPath,
            "drop_path": drop_path,
            "_cfg": _cfg,
            "register_model": self.register_model,
            "create_model": self.create_model,
            "list_models": lambda *_, **__: sorted(self.factories),
            "IMAGENET_DEFAULT_MEAN": (0.485, 0.456, 0.406),
            "IMAGENET_DEFAULT_STD": (0.229, 0.224, 0.225),
            "IMAGENET_INCEPTION_MEAN": (0.5, 0.5, 0.5),
            "IMAGENET_INCEPTION_STD": (0.5, 0.5, 0.5),
        }


# names of PyTorch's own that went away
TORCH_SIX = {"inf": math.inf, "nan": math.nan, "string_classes": (str, bytes), "int_classes": int}
