"""Recorder: keeps the values of the neurons while a program runs; random spikes for layers that are silent."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from svitc.analysis.float_error import bound_at
from svitc.errors import InputError
from svitc.ir import ops
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.operators.registry import operator_of
from svitc.ir.outputs import AVERAGED_DIMS
from svitc.ir.program import Program
from svitc.onnx.model_info import read_structure
from svitc.passes.lowering.average_steps import averaged

STIMULUS_SEED = 0


class Recorder(fx.Interpreter):
    """Interpreter that runs a program and keeps the inputs and spikes of its neurons.

    Args:
        program: the program.
        spikes: neuron -> spikes to pass on instead of its own.
        fires: whether neurons whose spikes are given run all the same, for ``spikes``.

    Attributes:
        currents: neuron -> its input.
        spikes: neuron -> its spikes on that input, if it ran.
        fed: neuron -> what later layers get: its spikes, or those passed in instead.
        arguments: name of a node whose operator has a ``slope`` -> its input.
    """

    def __init__(self, program: Program, spikes: dict[str, torch.Tensor] | None = None, fires: bool = True) -> None:
        super().__init__(program.module)
        self.program, self.replacements, self.fires = program, spikes, fires
        self.currents: dict[str, torch.Tensor] = {}
        self.spikes: dict[str, torch.Tensor] = {}
        self.fed: dict[str, torch.Tensor] = {}
        self.arguments: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and keep its input where the error of its value depends on that."""
        if _has_slope(n):
            self.arguments[n.name] = self.env[n.all_input_nodes[0]]
        return super().run_node(n)

    def call_module(self, target: fx.node.Target, args: tuple, kwargs: dict) -> object:
        assert isinstance(target, str)
        module = self.fetch_attr(target)
        if not ops.is_neuron(module):
            return super().call_module(target, args, kwargs)
        self.currents[target] = args[0]
        if self.replacements is None or self.fires:
            self.spikes[target] = super().call_module(target, args, kwargs)
        self.fed[target] = self.replacements[target] if self.replacements is not None else self.spikes[target]
        return self.fed[target]

    @classmethod
    def record(
        cls, program: Program, x: torch.Tensor, spikes: dict[str, torch.Tensor] | None = None, fires: bool = True
    ) -> tuple[Recorder, Any]:
        """Run a program on a batch; return the recorder and the output: a tensor, or a tuple of several."""
        recorder = cls(program, spikes, fires)
        return recorder, recorder.run_from_rest(x)

    def run_from_rest(self, x: torch.Tensor) -> Any:
        """Run the program on a batch in inference mode, from a reset state, and return its output."""
        self.program.module.eval()
        self.program.reset()
        with torch.inference_mode():
            output = self.run(x)
        self.program.reset()
        return output


class _Magnitudes(Recorder):
    """Recorder of what bounds rounding (``analysis.float_error.magnitudes``), beside the program itself."""

    def __init__(self, program: Program, reference: Recorder) -> None:
        super().__init__(program, reference.fed, fires=False)
        self.values = reference.arguments

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; bound an operator with a slope at the reference's value."""
        general = operator_of(n.target)
        if general is None or not _has_slope(n):
            return super().run_node(n)
        return bound_at(general, self.values[n.name], self.env[n.all_input_nodes[0]], **n.kwargs)


def record_magnitudes(magnitudes: Program, x: torch.Tensor, reference: Recorder) -> tuple[Recorder, Any]:
    """Run what bounds the magnitudes of a program's values beside a run of that program.

    Args:
        magnitudes: ``analysis.float_error.magnitudes`` of the program.
        x: the batch of that run.
        reference: that run.

    Returns:
        the recorder and the output, as ``Recorder.record``.
    """
    recorder = _Magnitudes(magnitudes, reference)
    return recorder, recorder.run_from_rest(x.abs())


def _has_slope(node: fx.Node) -> bool:
    """Return whether a node calls an operator whose error depends on its value."""
    general = operator_of(node.target) if node.op == "call_function" else None
    return general is not None and general.slope is not None


def program_of_file(program: Program, exported: bytes) -> Program:
    """Return a program with the outputs that a file has: averaged over time, where the file's are.

    Args:
        program: the program.
        exported: the ONNX file.

    Raises:
        InputError: the file has other outputs, so that not all of them would be compared.
    """
    outputs = read_structure(exported).graph.output
    names = [output.name for output in outputs]
    if names != program.output_names:
        raise InputError(
            f"the ONNX file has the outputs {', '.join(names)}, the program {', '.join(program.output_names)}",
            hint="They are not of one compilation.",
        )
    is_averaged = len(names) == 1 and len(outputs[0].type.tensor_type.shape.dim) == AVERAGED_DIMS
    return averaged(program) if is_averaged else program


def stimulate(module: nn.Module | None, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return random spikes for a neuron: a fifth of them fire, a neuron that counts with any of its counts.

    Args:
        module: the neuron.
        like: a tensor with the shape and type of the spikes.
        generator: the source of randomness.
    """
    fired = torch.rand(like.shape, generator=generator) < 0.2
    counts = torch.randint(1, dynamics_of(module).max_spikes + 1, like.shape, generator=generator)
    return (fired * counts).to(like.dtype)
