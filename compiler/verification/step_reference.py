"""The reference of a streaming file: what the program of all steps computes at each of them, membranes included."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from svitc.ir import axes, ops
from svitc.ir.axes import Dims, Kind
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.program import Program
from svitc.onnx.surgery.neuron_split import members_of
from svitc.verification.recorder import Recorder

Values = Mapping[str, torch.Tensor]


def at_step(array: np.ndarray, dims: Dims, t: int) -> np.ndarray:
    """Return one time step of a program's array, whose time axis then has size 1.

    Args:
        array: the array.
        dims: its type; without a time axis it is the same at every step.
        t: the step, from 0.
    """
    leaves = [axis for dim in dims for axis in dim]
    sizes = [-1 if axis.kind == Kind.BATCH else axis.size for axis in leaves]
    parts = array.reshape(sizes)
    merged = [[-1 if a.kind == Kind.BATCH else 1 if a.kind == Kind.TIME else a.size for a in dim] for dim in dims]
    for place, axis in enumerate(leaves):
        if axis.kind == Kind.TIME and axis.size > 1:
            parts = np.take(parts, [t], axis=place)
    return parts.reshape([-1 if -1 in dim else int(np.prod(dim, initial=1)) for dim in merged])


def membranes_after(module: nn.Module, current: torch.Tensor) -> torch.Tensor:
    """Return a neuron's membrane after each step, ``[T, ...]``, where it runs one step per call.

    Args:
        module: a neuron with a membrane; it is reset before and afterwards.
        current: its input, ``[T, ...]``.
    """
    layer, membranes = module, []
    with torch.inference_mode():
        if isinstance(layer, ops.LeakyNeuron):
            v = torch.zeros_like(current[0])
            for x in current:
                h = layer.charge(v, x)
                v = layer.reset_membrane(h, layer.fire(h))
                membranes.append(v)
        else:
            layer.reset()  # type: ignore[operator]
            for x in current:
                layer(x[None])
                membranes.append(layer.v.clone())  # type: ignore[union-attr, operator]
            layer.reset()  # type: ignore[operator]
    return torch.stack(membranes)


class StepReference:
    """One run of a program on a batch, step by step, with the layers joined as a file joins them.

    Args:
        program: the program of all steps.
        lowered: the same with layers joined (``exportable_program``).
        x: the batch.
        spikes: neuron -> spikes that later layers get instead of its own.
    """

    def __init__(
        self, program: Program, lowered: Program, x: torch.Tensor, spikes: dict[str, torch.Tensor] | None = None
    ) -> None:
        self.recorder, self.output = Recorder.record(program, x, spikes)
        self.modules = {str(node.target): program.module_of(node) for node in program.neurons()}
        self._dims = {str(node.target): program.type_of(node) for node in program.neurons()}
        self._joined = {str(node.target): lowered.shape_of(node) for node in lowered.neurons()}
        self.membranes = {
            path: membranes_after(module, self.recorder.currents[path])
            for path, module in self.modules.items()
            if module is not None and ops.has_state(module)
        }

    def members(self, path: str) -> list[str]:
        """Return the neurons of the program that a neuron of the file stands for."""
        return [path] if path in self.modules else members_of(path)

    def module(self, path: str) -> nn.Module | None:
        """Return the neuron; the first of several that are joined, which are equal."""
        return self.modules[self.members(path)[0]]

    def of(self, values: Values, path: str, t: int) -> np.ndarray:
        """Return the values of a neuron of the file at one step.

        Args:
            values: neuron of the program -> its values at all steps.
            path: the neuron of the file.
            t: the step, from 0.
        """
        parts = [at_step(values[member].numpy(), self._dims[member], t) for member in self.members(path)]
        if len(parts) == 1:
            return parts[0]
        shape, own = self._joined[path], axes.shape(self._dims[self.members(path)[0]])
        return np.concatenate(parts, next(i for i in range(1, len(own)) if shape[i] != own[i]))

    def membrane_before(self, path: str, t: int) -> np.ndarray:
        """Return the membrane of a neuron of the file before a step."""
        if t:
            return self.of(self.membranes, path, t - 1)
        like = self.of(self.membranes, path, 0)
        return np.full_like(like, dynamics_of(self.module(path)).initial)


__all__ = ["StepReference", "at_step", "membranes_after"]
