"""Replacements for the functions and classes that old model files import.

Old spiking code takes neurons from ``spikingjelly.clock_driven`` and helpers from timm. The same names are defined
here on top of SpikingJelly 2 and PyTorch, so that neither old package is needed.
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

from svitc.frontends.compat.timm_layers import TIMM_LAYERS

Factory = Callable[..., nn.Module]
# old arguments of neurons that select an implementation or record states; the result does not depend on them
DROPPED = ("backend", "lava_s_cale", "cupy_fp32_inference", "monitor_state")


class _MultiStepMeta(type):
    """The class of the multi-step names: SpikingJelly's own neurons in multi-step mode are instances of them."""

    kind: type[nn.Module]

    def __instancecheck__(cls, instance: object) -> bool:
        if type.__instancecheck__(cls, instance):
            return True
        return "__new__" in vars(cls) and isinstance(instance, cls.kind) and instance.step_mode == "m"


def multi_step(kind: type[nn.Module], name: str) -> type[nn.Module]:
    """Return the old multi-step class of a neuron, such as ``MultiStepLIFNode`` for ``LIFNode``.

    The class builds neurons in multi-step mode, and ignores the old choice of a backend.

    Args:
        kind: the neuron class of SpikingJelly 2.
        name: the name of the old class.
    """
    parameters = [p for p in inspect.signature(kind).parameters if p not in ("step_mode", "store_v_seq")]

    def arguments(args: tuple, kwargs: dict[str, object]) -> dict[str, object]:
        positional = dict(zip(parameters, args, strict=False))  # any further ones select a backend
        return {**positional, **{k: v for k, v in kwargs.items() if k not in DROPPED}, "step_mode": "m"}

    def new(cls: type, *args: object, **kwargs: object) -> nn.Module:
        # a subclass that the user defines stays one; the old name itself builds a neuron that svitc recognizes
        return kind.__new__(cls) if cls is not multi_step_class else kind(**arguments(args, kwargs))

    def init(self: nn.Module, *args: object, **kwargs: object) -> None:
        kind.__init__(self, **arguments(args, kwargs))

    multi_step_class: Any = _MultiStepMeta(name, (kind,), {"__new__": new, "__init__": init, "kind": kind})
    return multi_step_class


def clock_driven(module: str, name: str) -> object:
    """Return the replacement of a name of ``spikingjelly.clock_driven.<module>`` that SpikingJelly 2 does not have.

    Raises:
        AttributeError: there is no replacement.
    """
    if module == "neuron" and name.startswith("MultiStep"):
        kind = getattr(neuron, name.removeprefix("MultiStep"), None)
        if isinstance(kind, type) and issubclass(kind, base.MemoryModule):
            return multi_step(kind, name)
    if module == "layer" and name in ("MultiStepDropout", "MultiStepDropout2d"):
        kind = getattr(layer, name.removeprefix("MultiStep"))
        return lambda p=0.5, *_, **__: kind(p, step_mode="m")
    raise AttributeError(f"svitc has no replacement for {name} of spikingjelly.clock_driven.{module}")


class DropPath(nn.Module):
    """Stochastic depth: drops the branch for randomly chosen samples in training, and does nothing in inference."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return drop_path(x, self.drop_prob, self.training, self.scale_by_keep)


def drop_path(
    x: torch.Tensor, drop_prob: float = 0.0, training: bool = False, scale_by_keep: bool = True
) -> torch.Tensor:
    """Set randomly chosen samples of ``x``, of shape ``[samples, …]``, to 0 in training; see ``DropPath``."""
    if not drop_prob or not training:
        return x
    keep = 1 - drop_prob
    mask = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
    return x * (mask / keep if scale_by_keep and keep > 0 else mask)


def to_tuple(count: int) -> Callable[[object], tuple]:
    """Return timm's ``to_2tuple`` or the like: it repeats a number ``count`` times, and keeps iterables as they are."""

    def convert(x: object) -> tuple:
        return tuple(x) if isinstance(x, Iterable) and not isinstance(x, str) else tuple(repeat(x, count))

    return convert


def _cfg(url: str = "", **kwargs: object) -> dict[str, object]:
    return {"url": url, **kwargs}


def build_model_with_cfg(model: Factory, variant: str, pretrained: bool = False, **kwargs: object) -> nn.Module:
    """Build a model, named ``variant``, as timm's factories do, without what concerns pretrained weights."""
    ignored = (
        *("pretrained_cfg", "default_cfg", "pretrained_cfg_overlay", "model_cfg", "feature_cfg"),
        *("pretrained_strict", "pretrained_filter_fn", "pretrained_custom_load", "kwargs_filter"),
    )
    return model(**{key: value for key, value in kwargs.items() if key not in ignored})


class Registry:
    """The factories that one model file registers; each file has its own, so that names may repeat.

    Attributes:
        factories: name -> factory, in the order of registration.
    """

    def __init__(self) -> None:
        self.factories: dict[str, Factory] = {}

    def register_model(self, factory: Factory) -> Factory:
        """Register a factory under its own name, and return it: timm's decorator of that name."""
        self.factories[factory.__name__] = factory
        return factory

    def create_model(self, name: str, pretrained: bool = False, **kwargs: object) -> nn.Module:
        """Build a registered model. Arguments that are None keep the factory's default, as in timm.

        Raises:
            ValueError: no factory of that name is registered.
        """
        if name not in self.factories:
            raise ValueError(f"no model {name!r} is registered; there are {', '.join(self.factories) or 'none'}")
        return self.factories[name](pretrained=pretrained, **{k: v for k, v in kwargs.items() if v is not None})

    def timm(self) -> dict[str, object]:
        """Return the replacements for names of timm; they serve all its submodules."""
        return {
            **TIMM_LAYERS,
            **{f"to_{n}tuple": to_tuple(n) for n in (1, 2, 3, 4)},
            "to_ntuple": to_tuple,
            "trunc_normal_": nn.init.trunc_normal_,
            "DropPath": DropPath,
            "drop_path": drop_path,
            "_cfg": _cfg,
            "register_model": self.register_model,
            "create_model": self.create_model,
            "build_model_with_cfg": build_model_with_cfg,
            "list_models": lambda *_, **__: sorted(self.factories),
            "IMAGENET_DEFAULT_MEAN": (0.485, 0.456, 0.406),
            "IMAGENET_DEFAULT_STD": (0.229, 0.224, 0.225),
            "IMAGENET_INCEPTION_MEAN": (0.5, 0.5, 0.5),
            "IMAGENET_INCEPTION_STD": (0.5, 0.5, 0.5),
        }


class BaseModule(nn.Module):
    """OpenMMLab's base class of layers, which only adds how weights are initialized."""

    def __init__(self, init_cfg: object = None) -> None:
        super().__init__()
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        """Do nothing: a checkpoint has the weights."""


OPENMMLAB: dict[str, object] = {"BaseModule": BaseModule}
# what torch._six held in old versions of PyTorch
TORCH_SIX = {"inf": math.inf, "nan": math.nan, "string_classes": (str, bytes), "int_classes": int}
