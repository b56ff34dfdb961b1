"""Access to the graph: the model's input, and the modules, types and parameters of its nodes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from svitc.ir import axes

BATCH_PROBE = 3  # placeholder for the dynamic batch size in types; never written to a file


@dataclass(frozen=True)
class InputSpec:
    """Specification of the model's input, without its batch axis.

    Attributes:
        shape: ``(C, H, W)`` for images, ``(T, C, H, W)`` for event frames.
    """

    shape: tuple[int, ...]

    @property
    def events(self) -> bool:
        """Whether the input consists of event frames, with a time axis."""
        return len(self.shape) == 4

    def batched(self, batch: int) -> tuple[int, ...]:
        """Return the shape of ``batch`` inputs: ``(N, C, H, W)``, or ``(T, N, C, H, W)`` for event frames."""
        return (self.shape[0], batch, *self.shape[1:]) if self.events else (batch, *self.shape)

    def at_once(self, images: int, size: int = 64) -> int:
        """Return a batch size for which the activations fit in memory.

        Args:
            images: batch size for images of up to ``size`` x ``size`` pixels; larger images get a smaller one.
            size: pixels along each side of a reference image.
        """
        return max(1, min(images, images * size**2 // math.prod(self.shape[-2:])))

    @property
    def batch_dim(self) -> int:
        """Index of the batch dimension: 0, or 1 for event frames."""
        return 1 if self.events else 0


def module_of(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that a ``call_module`` node calls, None for any other node."""
    return operator.attrgetter(str(node.target))(module) if node.op == "call_module" else None


def type_of(node: fx.Node) -> axes.Dims:
    """Return the type of a node's value: its dimensions, as products of leaf axes."""
    return tuple(axes.resolve(dim) for dim in node.meta["dims"])


def input_type(value: object) -> axes.Dims:
    """Return the type of a node's argument.

    Raises:
        AxisConflict: the argument is not a tensor.
    """
    if not isinstance(value, fx.Node):
        raise axes.AxisConflict(f"expected a tensor, got {value!r}")
    return type_of(value)


def parameters_of(node: fx.Node) -> dict[str, axes.Dims]:
    """Return name -> type of each parameter and per-channel buffer of a node's module."""
    return {name: tuple(axes.resolve(dim) for dim in dims) for name, dims in node.meta.get("params", {}).items()}


def attribute_of(module: nn.Module, path: str) -> torch.Tensor:
    """Return the parameter or buffer at a dotted path."""
    return operator.attrgetter(path)(module)


def describe(node: fx.Node) -> str:
    """Return a description of a node for messages: the layer's path, or the operation and the layer it is in."""
    if node.op == "call_module":
        return str(node.target)
    scope = node.meta.get("scope") or "the model"
    return f"{getattr(node.target, '__name__', node.target)} in {scope}"


def readers_through(node: fx.Node, is_view: Callable[[fx.Node], bool]) -> Iterator[fx.Node]:
    """Yield the nodes that read the value of ``node``; for views, the nodes that read the view."""
    for user in node.users:
        if is_view(user):
            yield from readers_through(user, is_view)
        else:
            yield user
