"""The graph itself: the model's input, and what a node calls, reads and is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from svitc.ir import axes

BATCH_PROBE = 3  # stands for the dynamic batch in types; never written to a file


@dataclass(frozen=True)
class InputSpec:
    """The model's one input, without its batch axis.

    Attributes:
        shape: ``(C, H, W)`` for images, ``(T, C, H, W)`` for event frames.
    """

    shape: tuple[int, ...]

    @property
    def events(self) -> bool:
        return len(self.shape) == 4

    def batched(self, batch: int) -> tuple[int, ...]:
        """``(N, C, H, W)`` or ``(T, N, C, H, W)``."""
        return (self.shape[0], batch, *self.shape[1:]) if self.events else (batch, *self.shape)

    def at_once(self, images: int, size: int = 64) -> int:
        """A batch whose values stay in memory: ``images`` of ``size`` squared pixels, fewer of larger ones."""
        return max(1, min(images, images * size**2 // math.prod(self.shape[-2:])))

    @property
    def batch_dim(self) -> int:
        return 1 if self.events else 0


def module_of(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that a ``call_module`` node calls, None for any other node."""
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def type_of(node: fx.Node) -> axes.Dims:
    """Return the dimensions of a node's value, each a product of axes, resolved now."""
    return tuple(axes.resolve(dim) for dim in node.meta["dims"])


def input_type(value: Any) -> axes.Dims:
    """Return the type of a node's argument.

    Raises:
        AxisConflict: it is no tensor.
    """
    if not isinstance(value, fx.Node):
        raise axes.AxisConflict(f"expected a tensor, got {value!r}")
    return type_of(value)


def parameters_of(node: fx.Node) -> dict[str, axes.Dims]:
    """Return the dimensions of each parameter and per-channel buffer of a node's module, by name."""
    return {name: tuple(axes.resolve(dim) for dim in dims) for name, dims in node.meta.get("params", {}).items()}


def attribute_of(module: nn.Module, path: str) -> torch.Tensor:
    """The parameter or buffer at a dotted path."""
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def describe(node: fx.Node) -> str:
    """A node as its user knows it: the layer's path, or the operation within its layer."""
    if node.op == "call_module":
        return str(node.target)
    scope = node.meta.get("scope") or "the model"
    return f"{getattr(node.target, '__name__', node.target)} in {scope}"


def readers_through(node: fx.Node, is_view: Callable[[fx.Node], bool]) -> Iterator[fx.Node]:
    """Yield what reads a value, looking through the nodes for which ``is_view`` holds."""
    for user in node.users:
        if is_view(user):
            yield from readers_through(user, is_view)
        else:
            yield user
