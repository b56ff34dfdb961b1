"""The program: a captured model as an ``fx.GraphModule`` in canonical form, with an axis type on every value."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import fx, nn

from svitc.ir import axes, ops
from svitc.ir.channel_groups import ChannelGroup, channel_groups
from svitc.ir.graph import InputSpec, module_of, parameters_of, type_of
from svitc.ir.printer import dump
from svitc.ir.type_inference import infer


class Stage(IntEnum):
    """How far a program has come; each stage's graph is checked against its specification (verifier.py)."""

    CAPTURED = 0  # canonical operations, batch norms apart, trains
    PRUNED = 1  # the same, at the widths of a plan
    INFERENCE = 2  # batch norms folded, time-invariant work hoisted; no longer trains
    QUANTIZED = 3  # int8 weights, leaks and thresholds folded into them
    EXPORTABLE = 4  # layers joined where one operation does for several; widths are final


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
        return module_of(self.module, node)

    def type_of(self, node: fx.Node) -> axes.Dims:
        """The dimensions of a node's value, each a product of axes, resolved now."""
        return type_of(node)

    def shape_of(self, node: fx.Node) -> tuple[int, ...]:
        """The value's shape, with ``BATCH_PROBE`` for the batch."""
        return axes.shape(self.type_of(node))

    def parameters_of(self, node: fx.Node) -> dict[str, axes.Dims]:
        """Name of each parameter and per-channel buffer of a node's module -> its dimensions."""
        return parameters_of(node)

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
        self._groups = self._calls = None
        infer(self.module, self.input)

    @property
    def groups(self) -> list[ChannelGroup]:
        """The channel groups, in the order of the graph."""
        if self._groups is None:
            self._groups = channel_groups(self.module)
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
        title = f"program {self.info.get('arch', '')} at stage {self.stage.name.lower()}"
        return dump(self.module, self.groups, title)
