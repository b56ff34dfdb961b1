"""The program: a captured model as an ``fx.GraphModule`` in canonical form, with an axis type on every value."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from svitc import axes, ops

if TYPE_CHECKING:
    from svitc.coupling import ChannelGroup

BATCH_PROBE = 3  # stands for the dynamic batch in types; never written to a file


class Stage(IntEnum):
    """How far a program has come; each stage's graph is checked against its specification (check.py)."""

    CAPTURED = 0  # canonical operations, batch norms apart, trains
    PRUNED = 1  # the same, at the widths of a plan
    INFERENCE = 2  # batch norms folded, time-invariant work hoisted; no longer trains
    QUANTIZED = 3  # int8 weights, leaks and thresholds folded into them
    EXPORTABLE = 4  # layers joined where one operation does for several; widths are final


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


@dataclass
class Program:
    """A captured model.

    Attributes:
        module: the canonical graph; runs on any batch size, trains while ``stage`` is at most PRUNED.
        input: shape of the input without batch.
        stage: how far the passes have come.
        info: what the frontend knows of the model: ``arch``, ``assumptions``, ``dead`` parameters,
            ``normalize``, ``classes``. JSON values only.
    """

    module: fx.GraphModule
    input: InputSpec
    stage: Stage = Stage.CAPTURED
    info: dict[str, Any] = field(default_factory=dict)
    _groups: list[ChannelGroup] | None = None
    _calls: Counter[str] | None = None

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """The module that a ``call_module`` node calls, None for any other node."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def type_of(self, node: fx.Node) -> axes.Dims:
        """The dimensions of a node's value, each a product of axes, resolved now."""
        return tuple(axes.resolve(dim) for dim in node.meta["dims"])

    def shape_of(self, node: fx.Node) -> tuple[int, ...]:
        """The value's shape, with ``BATCH_PROBE`` for the batch."""
        return axes.shape(self.type_of(node))

    def parameters_of(self, node: fx.Node) -> dict[str, axes.Dims]:
        """Name of each parameter and per-channel buffer of a node's module -> its dimensions."""
        return {name: tuple(axes.resolve(dim) for dim in dims) for name, dims in node.meta.get("params", {}).items()}

    def called_once(self, node: fx.Node) -> bool:
        """Whether no other node calls a node's layer, so that its weights may be changed for this one.

        Calls are counted once for a typed graph: what a pass has erased since still counts.
        """
        if self._calls is None:
            self._calls = Counter(str(each.target) for each in self.graph.nodes if each.op == "call_module")
        return self._calls[str(node.target)] == 1

    def neurons(self) -> Iterator[fx.Node]:
        """Neuron nodes, in execution order."""
        return (n for n in self.graph.nodes if ops.is_neuron(self.module_of(n)))

    def retype(self) -> None:
        """Infer every axis type anew from the graph and the real parameter shapes."""
        from svitc.infer import infer  # infer knows Program; the cycle is only in names

        self._groups = self._calls = None
        infer(self)

    @property
    def groups(self) -> list[ChannelGroup]:
        """The channel groups, in the order of the graph."""
        from svitc.coupling import channel_groups

        if self._groups is None:
            self._groups = channel_groups(self)
        return self._groups

    def copy(self) -> Program:
        """An independent copy: weights, graph and types."""
        twin = Program(copy.deepcopy(self.module), self.input, self.stage, copy.deepcopy(self.info))
        twin.retype()
        return twin

    def parameter_count(self) -> int:
        """Parameters that the graph uses (batch-norm statistics are buffers and do not count)."""
        return sum(p.numel() for p in self.module.parameters())

    def reset(self) -> None:
        """Reset the membranes of all neurons."""
        for module in self.module.modules():
            if ops.is_neuron(module):
                module.reset()  # type: ignore[operator]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Run on a batch, from reset membranes, in inference."""
        self.module.eval()
        self.reset()
        with torch.inference_mode():
            y = self.module(x)
        self.reset()
        return y

    def __str__(self) -> str:
        from svitc.dump import dump

        return dump(self)
