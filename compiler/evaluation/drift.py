"""Drift: how far a network's membranes are from the original's, which a few images tell long before accuracy does."""

from __future__ import annotations

from typing import Any

import torch

from svitc.ir import ops
from svitc.ir.program import Program


class Drift:
    """Mean distance of membrane potentials from the original's, in thresholds.

    AQ4SViT (arXiv 2606.15523) gates candidates by the drift of membrane potentials; its norm is not stated. Here it is
    the mean over neurons, steps and images of ``|V' - V|`` over the threshold, each neuron module weighing the same.

    Args:
        program: the original.
        inputs: a few images in its input layout; the potentials that they give are kept in memory.
    """

    def __init__(self, program: Program, inputs: torch.Tensor) -> None:
        self.inputs = inputs
        self._before = self._potentials(program)

    def __call__(self, candidate: Program) -> float:
        """The drift of a program with the same neurons and widths."""
        after = self._potentials(candidate)
        if not after:
            return 0.0
        return sum(float((after[name] - self._before[name]).abs().mean()) for name in after) / len(after)

    def _potentials(self, program: Program) -> dict[str, torch.Tensor]:
        """Neuron -> membrane after each step, in thresholds above rest."""
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
                program.module(self.inputs)  # not the program, which resets at the end
            return {
                name: module.v_seq / (module.v_threshold - (module.v_reset or 0.0)) for name, module in neurons.items()
            }
        finally:
            for name, module in neurons.items():
                module.store_v_seq = stored[name]
            program.reset()


__all__ = ["Drift"]
