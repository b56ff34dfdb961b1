"""Drift of membrane potentials from the original's: an indicator of lost accuracy that needs only a few images."""

from __future__ import annotations

from typing import Any

import torch

from svitc.ir import ops
from svitc.ir.program import Program


class Drift:
    """Mean distance of membrane potentials from the original's, in units of the threshold.

    AQ4SViT (arXiv 2606.15523) rejects candidates by the drift of their membrane potentials but does not state the norm.
    Here the drift is the mean of ``|V' - V| / threshold`` over neurons, time steps and images, where each neuron layer
    has the same weight.

    Args:
        program: the original.
        inputs: a few images in its input layout, whose membrane potentials are kept in memory.
    """

    def __init__(self, program: Program, inputs: torch.Tensor) -> None:
        self.inputs = inputs
        self._original = self._potentials(program)

    def __call__(self, candidate: Program) -> float:
        """Return the drift of a program with the same neurons and channel counts."""
        potentials = self._potentials(candidate)
        if not potentials:
            return 0.0
        return sum(float((potentials[name] - self._original[name]).abs().mean()) for name in potentials) / len(
            potentials
        )

    def _potentials(self, program: Program) -> dict[str, torch.Tensor]:
        """Return neuron -> membrane potential after each time step, in thresholds (from the reset voltage on)."""
        neurons: dict[str, Any] = {
            str(node.target): module for node in program.neurons() if ops.has_state(module := program.module_of(node))
        }
        program.module.eval()
        program.reset()
        stored = {name: module.store_v_seq for name, module in neurons.items()}
        try:
            for module in neurons.values():
                module.store_v_seq = True
            with torch.no_grad():
                program.module(self.inputs)  # calling the program itself would reset the membranes at the end
            return {
                name: module.v_seq / (module.v_threshold - (module.v_reset or 0.0)) for name, module in neurons.items()
            }
        finally:
            for name, module in neurons.items():
                module.store_v_seq = stored[name]
            program.reset()


__all__ = ["Drift"]
