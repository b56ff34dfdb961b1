"""Programs: captured models as ``fx.GraphModule`` in canonical form, with an axis type on every value."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from svitc.errors import UsageError
from svitc.html_report import program_card
from svitc.ir import axes, ops
from svitc.ir.channel_groups import ChannelGroup, channel_groups
from svitc.ir.graph import InputSpec, module_of, parameters_of, type_of
from svitc.ir.group_kinds import group_kinds
from svitc.ir.module_copy import copied
from svitc.ir.outputs import as_tuple, output_names, restored
from svitc.ir.printer import dump
from svitc.ir.type_inference import infer
from svitc.plots import plot_channels
from svitc.support import human
from svitc.support.types import JsonDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Stage(IntEnum):
    """Stage of a program in the compilation. verifier.py checks the graph against the rules of its stage."""

    CAPTURED = 0  # canonical operations with separate batch norms; can be trained
    PRUNED = 1  # the same, with the channel counts of a plan
    INFERENCE = 2  # batch norms folded, time-invariant operations hoisted; can no longer be trained
    QUANTIZED = 3  # integer weights, into which leaks and thresholds are folded
    EXPORTABLE = 4  # layers fused into single operations where possible; channel counts are final


@dataclass(repr=False)
class Program:
    """Captured model.

    Attributes:
        module: the canonical graph; runs with any batch size, and can be trained up to the stage PRUNED.
        input: shape of the input without batch.
        stage: stage that the passes have reached.
        info: information from the frontend about the model: ``arch``, ``assumptions``, ``dead`` parameters,
            ``normalize``, ``classes``, ``outputs`` (outputs.py). JSON values only.
        eager: runs the model itself that was captured, from a batch to its outputs; None where it is not at hand. It is
            neither copied nor saved.
    """

    module: fx.GraphModule
    input: InputSpec
    stage: Stage = Stage.CAPTURED
    info: JsonDict = field(default_factory=dict)
    _groups: list[ChannelGroup] | None = None
    _calls: Counter[str] | None = None
    eager: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] | None = field(default=None, compare=False, repr=False)

    @property
    def graph(self) -> fx.Graph:
        """The graph of ``module``."""
        return self.module.graph

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a ``call_module`` node calls, None for any other node."""
        return module_of(self.module, node)

    def type_of(self, node: fx.Node) -> axes.Dims:
        """Return the type of a node's value: its dimensions, as products of leaf axes."""
        return type_of(node)

    def shape_of(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of a node's value, with ``BATCH_PROBE`` as the batch size."""
        return axes.shape(self.type_of(node))

    def parameters_of(self, node: fx.Node) -> dict[str, axes.Dims]:
        """Return name -> type of each parameter and per-channel buffer of a node's module."""
        return parameters_of(node)

    def called_once(self, node: fx.Node) -> bool:
        """Return whether only this node calls its layer, so that a pass can change the layer's weights.

        Calls are counted once after each type inference, so nodes that a pass has erased since then still count.
        """
        if self._calls is None:
            self._calls = Counter(str(n.target) for n in self.graph.nodes if n.op == "call_module")
        return self._calls[str(node.target)] == 1

    def neurons(self) -> Iterator[fx.Node]:
        """Return the nodes that call neurons, in execution order."""
        return (n for n in self.graph.nodes if ops.is_neuron(self.module_of(n)))

    def retype(self) -> None:
        """Infer all axis types again, from the graph and the shapes of the parameters."""
        self._groups = self._calls = None
        infer(self.module, self.input)

    @property
    def groups(self) -> list[ChannelGroup]:
        """The channel groups, in graph order."""
        if self._groups is None:
            self._groups = channel_groups(self.module)
        return self._groups

    def copy(self, retype: bool = True) -> Program:
        """Return an independent copy, including weights, graph and types.

        Args:
            retype: whether the copy gets types of its own. Otherwise it shares those of the original, which saves time
                where a pass that infers them again comes next.
        """
        twin = Program(copied(self.module), self.input, self.stage, copy.deepcopy(self.info))
        if retype:
            twin.retype()
        else:
            twin._groups = self._groups
        return twin

    def release(self) -> None:
        """Let go of the weights of a program that is not used again.

        Its graph and its module refer to each other, so that Python would keep them until it looks for such cycles.
        """
        for module in self.module.modules():
            module._parameters.clear()
            module._buffers.clear()

    def parameter_count(self) -> int:
        """Return the number of parameters in the graph. Statistics of batch norms are buffers and do not count."""
        return sum(p.numel() for p in self.module.parameters())

    def reset(self) -> None:
        """Reset the membranes of all neurons."""
        for module in self.module.modules():
            if ops.is_neuron(module):
                module.reset()  # type: ignore[operator]

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in order; ``logits`` for a model that returns one tensor."""
        return output_names(self.info)

    def outputs(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run inference as in ``__call__``, and return the outputs in the order of ``output_names``."""
        return as_tuple(self._run(x))

    def original_outputs(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of the model itself where it is at hand, otherwise those of the program."""
        return self.outputs(x) if self.eager is None else self.eager(x)

    def __call__(self, x: torch.Tensor) -> Any:
        """Run inference on a batch, with all membranes reset before and afterwards.

        Args:
            x: of shape ``input.batched(N)`` for any batch size N.

        Returns:
            what the model returns, such as logits of shape ``[N, classes]`` or ``[T, N, classes]``, or a dictionary.
        """
        return restored(self.info, self._run(x))

    def _run(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run inference, and return what the graph returns."""
        self.module.eval()
        self.reset()
        with torch.inference_mode():
            y = self.module(x)
        self.reset()
        return y

    def summary(self) -> JsonDict:
        """Return what the program is and its channel groups, as JSON values: what notebooks show."""
        kinds = group_kinds(self.module, self.groups)
        return {
            "model": {key: value for key, value in self.info.items() if key != "dead"},
            "input": list(self.input.shape),
            "stage": self.stage.name.lower(),
            "parameters": self.parameter_count(),
            "layers": len({node.target for node in self.graph.nodes if ops.is_projection(self.module_of(node))}),
            "neurons": len({node.target for node in self.neurons()}),
            "groups": [
                {"name": g.name, "kind": kinds[g.name], "size": g.size, "kept": g.size, "frozen": g.frozen}
                for g in self.groups
            ],
        }

    def _repr_html_(self) -> str:
        """Return the program as notebooks show it."""
        return program_card(self.summary())

    def plot(self) -> Figure:
        """Draw the channel groups, from the input to the head, as a figure of matplotlib.

        Raises:
            UsageError: matplotlib is not installed.
        """
        return plot_channels(self.summary()["groups"], "Channel groups, from the input to the head")

    def __repr__(self) -> str:
        """Return what it is in one line; ``print`` shows the graph."""
        arch, stage = self.info.get("arch", "of a module"), self.stage.name.lower()
        return (
            f"Program({arch}, {stage}, {self.parameter_count():,} parameters in "
            f"{human.counted(len(self.groups), 'channel group')})"
        )

    def __str__(self) -> str:
        title = f"program {self.info.get('arch', '')} at stage {self.stage.name.lower()}"
        return dump(self.module, self.groups, title)


def required_program(value: object) -> Program:
    """Return a value that must be a program.

    Raises:
        UsageError: it is something else; the hint says how to get one.
    """
    if isinstance(value, Program):
        return value
    what = f"a {type(value).__name__} is not a program"
    if isinstance(getattr(value, "program", None), Program):
        raise UsageError(what, hint="It has one: its attribute program.")
    raise UsageError(what, hint="svitc.load(path) makes one of a checkpoint, svitc.capture(model, example) of a model.")
